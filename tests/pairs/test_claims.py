"""Many workers on one set: which makes what, and which waits for which."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from diffgan.__main__ import main
from diffgan.pairs.claims import Claim, Claims, claim_name, read_claim
from diffgan.storage.open import open_store
from diffgan.storage.processes import Worker, _born, is_dead, machine, this_worker
from diffgan.storage.store import Entry
from tests.pair_sets import contents, partial_shards, refusal, shards, wait_until, writer_settings
from tests.processes import SERVER, run_on_two_processes, start

SHARD = 2
OTHER_BATCHES = ("19-21", "22-23")  # all batches of the shard but the first


@pytest.fixture
def sleeper():
    """Another process of this machine."""
    process = subprocess.Popen(["sleep", "300"])
    yield process
    process.kill()
    process.wait()


def claimed_by(folder, worker: Worker):
    """A set in which another worker has claimed a shard."""
    open_store(folder).write(claim_name(SHARD), Claim(worker, time.time(), time.time()).content())
    return folder


def on_this_machine(process) -> Worker:
    return Worker(socket.gethostname(), machine(), process.pid, _born(process.pid))


def test_processes_are_distinguished(sleeper):
    worker = on_this_machine(sleeper)
    assert not is_dead(this_worker()) and not is_dead(worker)
    assert is_dead(worker._replace(born="1")), "a later process may have its number"
    os.kill(sleeper.pid, signal.SIGKILL)
    wait_until(lambda: is_dead(worker))  # not collected by its parent yet
    sleeper.wait()
    assert is_dead(worker) and not is_dead(worker._replace(machine="elsewhere"))


def test_a_claim_has_one_holder_and_is_free_after_release(tmp_path):
    one, other = (Claims(open_store(tmp_path), 600) for _ in range(2))
    assert one.acquire(3) and not other.acquire(3) and other.acquire(4)
    one.release(3)
    assert other.acquire(3) and sorted(other.held) == [3, 4]


def test_a_claim_lasts_as_long_as_it_is_refreshed(tmp_path, monkeypatch):
    monkeypatch.setattr("diffgan.pairs.claims.REFRESH_SECONDS", 0)
    store = open_store(tmp_path)
    one, other = Claims(store, 600), Claims(store, 600)
    one.acquire(3)
    os.utime(tmp_path / claim_name(3), (1, 1))
    one.refresh()
    assert not other.remove_stale({3: store.entries("claims")[claim_name(3)]})
    os.utime(tmp_path / claim_name(3), (1, 1))
    assert other.remove_stale({3: store.entries("claims")[claim_name(3)]}) and other.acquire(3)
    one.refresh()
    assert not one.held and read_claim(store, 3) is not None, (
        "a claim that another worker took over is given up and left unchanged"
    )


def test_without_file_times_the_time_in_the_claim_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("diffgan.pairs.claims.REFRESH_SECONDS", 0)
    store, untimed = open_store(tmp_path), {3: Entry(1, 0.0)}
    one, other = Claims(store, 600), Claims(store, 600)
    one.acquire(3)
    assert not other.remove_stale(untimed), "it was acquired just now"
    begin = time.time()
    monkeypatch.setattr(time, "time", lambda: begin + 500)
    one.refresh()
    monkeypatch.setattr(time, "time", lambda: begin + 1000)
    assert one.held and read_claim(store, 3).since < begin + 1 and not other.remove_stale(untimed), "it was refreshed"
    monkeypatch.setattr(time, "time", lambda: begin + 1200)
    assert other.remove_stale(untimed)


@pytest.mark.parametrize("lease", ["0", "-1", ".nan", ".inf"])
def test_an_impossible_lease_is_refused(command, tmp_path, capsys, lease):
    folder = tmp_path / "new"
    words = command(folder)
    config = yaml.safe_load(Path(words[2]).read_text())
    writer_settings(config)["lease_seconds"] = yaml.safe_load(lease)
    Path(words[2]).write_text(yaml.safe_dump(config))
    assert "lease_seconds: " in (line := refusal(capsys, words)) and ("must be above 0" in line or "no number" in line)
    assert not folder.exists()


def test_the_claim_of_a_dead_worker_is_taken_over_at_once(sleeper, unbroken, command, tmp_path):
    folder = claimed_by(tmp_path / "set", on_this_machine(sleeper))
    sleeper.kill()
    sleeper.wait()
    main(command(folder))
    assert contents(folder) == contents(unbroken)


def test_a_live_worker_is_helped_and_waited_for(sleeper, unbroken, command, tmp_path):
    folder = claimed_by(tmp_path / "set", on_this_machine(sleeper))
    worker = start(command(folder))
    wait_until(
        lambda: (
            len(shards(folder)) == 5
            and partial_shards(folder) == [f"{SHARD:05d}-{i}.safetensors" for i in OTHER_BATCHES]
        )
    )
    time.sleep(1)
    assert worker.is_alive() and len(shards(folder)) == 5, "the batch that the other worker makes is left to it"
    sleeper.kill()
    sleeper.wait()
    worker.join(60)
    assert worker.exitcode == 0 and contents(folder) == contents(unbroken)


def test_an_expired_lease_of_another_machine_is_taken_over(unbroken, command, tmp_path):
    folder = claimed_by(tmp_path / "set", Worker("node7", "elsewhere", 12, "1"))
    os.utime(folder / claim_name(SHARD), (time.time() - 601,) * 2)
    main(command(folder))
    assert contents(folder) == contents(unbroken)


def test_a_lease_is_waited_for_and_reported(unbroken, command, tmp_path):
    folder = claimed_by(tmp_path / "set", Worker("node7", "elsewhere", 12, "1"))
    worker = SERVER.Process(target=main_into, args=(tmp_path / "shown.txt", command(folder)))
    worker.start()
    line = f"{folder}: waiting for shard {SHARD} (node7, process 12)"
    wait_until(lambda: (tmp_path / "shown.txt").exists() and line in (tmp_path / "shown.txt").read_text())
    assert worker.is_alive() and len(shards(folder)) == 5
    os.utime(folder / claim_name(SHARD), (time.time() - 601,) * 2)
    worker.join(60)
    assert worker.exitcode == 0 and contents(folder) == contents(unbroken)
    assert (tmp_path / "shown.txt").read_text().count(line) == 1


def main_into(file, words):
    """The command, its standard error in a file."""
    sys.stderr = file.open("w", buffering=1)
    main(words)


def test_the_same_command_twice_makes_the_same_bytes(unbroken, command, tmp_path):
    together = tmp_path / "together"
    workers = [start(command(together)) for _ in range(2)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0] and contents(together) == contents(unbroken)


def test_two_processes_of_a_trainer_with_unequal_work_make_the_same_bytes(sleeper, unbroken, command, tmp_path):
    together = tmp_path / "together"
    for shard in (0, 1, 3, 4, 5):  # one shard is left for two processes
        name = f"pairs-{shard:05d}-of-00006.safetensors"
        together.mkdir(exist_ok=True)
        (together / name).write_bytes((unbroken / name).read_bytes())
    assert run_on_two_processes(command(together, "--trainer.devices=2", "--trainer.strategy=ddp")) == [0, 0]
    assert contents(together) == contents(unbroken)


def test_of_two_configurations_at_the_same_time_one_is_refused(command, tmp_path, unbroken):
    folder = tmp_path / "set"
    workers = [start(command(folder, f"--model.init_args.guidance={guidance}")) for guidance in (3.0, 2.0)]
    for worker in workers:
        worker.join(120)
    assert sorted(worker.exitcode for worker in workers) == [0, 1]
    main(command(folder, f"--model.init_args.guidance={3.0 if workers[0].exitcode == 0 else 2.0}"))
    assert len(shards(folder)) == 6


def test_a_file_that_is_not_a_claim_expires_too(unbroken, command, tmp_path):
    folder = tmp_path / "set"
    open_store(folder).write(claim_name(SHARD), b"half a cl")
    os.utime(folder / claim_name(SHARD), (0, 0))
    main(command(folder))
    assert contents(folder) == contents(unbroken)
