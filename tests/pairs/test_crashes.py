"""Pair generation that is killed or loses its folder: that costs at most a batch, and no byte of the set changes."""

import os
import random
import shutil
import signal
import sys
import time

import pytest

from diffgan.__main__ import main
from diffgan.pairs.work_queue import WorkQueue
from tests.pair_sets import claims, contents, die_at_write, partial_shards, refusal, shards, wait_until
from tests.processes import SERVER, run_apart, start, start_two_processes

SLOW = ("--model.init_args.steps=60",)  # a batch takes about a second
ON_TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def test_kill_9_at_every_kind_of_file_changes_nothing(unbroken, command, tmp_path):
    broken = tmp_path / "broken"
    for write in (1, 2, 3, 5, 6):  # the manifest; then a claim; then a shard's first partial shard; its third; a shard
        assert run_apart(die_at_write, command(broken), write) == -signal.SIGKILL
        assert list(broken.rglob("*.partial"))
    assert partial_shards(broken) or shards(broken)
    main(command(broken))
    assert contents(broken) == contents(unbroken)
    assert not (broken / "parts").exists() and not (broken / "claims").exists()


@pytest.fixture
def interrupted_set(command, tmp_path):
    """A set whose only worker was killed when a shard had two of its three partial shards."""
    for attempt in range(10):  # a worker begins with a random shard, and the last one has only two partial shards
        folder = tmp_path / f"interrupted_set-{attempt}"
        assert run_apart(die_at_write, command(folder), 5) == -signal.SIGKILL
        if not partial_shards(folder)[0].startswith("00005"):
            break
    assert len(partial_shards(folder)) == 2 and len(claims(folder)) == 1
    return folder


def test_a_worker_resumes_inside_the_shard(interrupted_set, unbroken, command):
    before = partial_shards(interrupted_set)
    main(command(interrupted_set, "--trainer.limit_predict_batches=1"))
    assert set(partial_shards(interrupted_set)) > set(before) and len(partial_shards(interrupted_set)) == 3
    assert len({name[:5] for name in partial_shards(interrupted_set)}) == 1 and not claims(interrupted_set)
    main(command(interrupted_set))
    assert contents(interrupted_set) == contents(unbroken)


def test_damaged_partial_shards_are_made_again(interrupted_set, unbroken, command):
    flipped, truncated = (interrupted_set / "parts" / name for name in partial_shards(interrupted_set))
    flipped.write_bytes(flipped.read_bytes()[:-1] + b"\xff")
    os.truncate(truncated, 100)
    main(command(interrupted_set))
    assert contents(interrupted_set) == contents(unbroken)


def test_partial_shards_of_another_set_are_refused_by_name(interrupted_set, command, tmp_path, capsys):
    main(command(tmp_path / "other", "--model.init_args.guidance=1.0", "--trainer.limit_predict_batches=3"))
    shard = partial_shards(interrupted_set)[0][:5]
    for name in partial_shards(interrupted_set):
        (interrupted_set / "parts" / name).unlink()
    first = int(shard) * 8
    source = tmp_path / "other" / "parts" / partial_shards(tmp_path / "other")[0]
    shutil.copy(source, interrupted_set / "parts" / f"{shard}-{first}-{first + 2}.safetensors")
    line = refusal(capsys, command(interrupted_set))
    assert "parts/" in line and "guidance is 1.0 there and 3.0 here" in line


def test_continuing_a_set_compiled_is_reported(interrupted_set, command, capsys):
    main(command(interrupted_set, "--model.init_args.compile=true", "--trainer.limit_predict_batches=0"))
    assert "started with compile False, continued with True" in capsys.readouterr().err


def test_partial_shards_of_another_batch_size_are_not_used(interrupted_set, command, tmp_path, capsys):
    expected = tmp_path / "expected"
    main(command(expected, "--data.init_args.batch_size=4"))
    main(command(interrupted_set, "--data.init_args.batch_size=4"))
    assert "started with batch_size 3, continued with 4" in capsys.readouterr().err
    assert contents(interrupted_set).keys() == contents(expected).keys()
    assert all(contents(interrupted_set)[name] == contents(expected)[name] for name in shards(expected))


def at_batch(monkeypatch, number: int, act) -> None:
    """Call act() when the `number`-th finished batch is submitted."""
    submit, calls = WorkQueue.submit, iter(range(1000))

    def submit_after_act(self, pairs, truncated):
        if next(calls) == number - 1:
            self.writer.finish()
            act()
        submit(self, pairs, truncated)

    monkeypatch.setattr(WorkQueue, "submit", submit_after_act)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_a_folder_deleted_during_the_run_ends_it_with_one_line(command, unbroken, monkeypatch, tmp_path, capsys, batch):
    folder = tmp_path / "gone"
    at_batch(monkeypatch, batch, lambda: shutil.rmtree(folder))
    assert f"{folder}/manifest.json: was deleted; run the same command again" in refusal(capsys, command(folder))
    assert not shards(folder) and not partial_shards(folder)
    main(command(folder))
    assert contents(folder) == contents(unbroken)


def test_a_manifest_deleted_before_the_end_is_reported(command, unbroken, monkeypatch, tmp_path, capsys):
    folder = tmp_path / "gone"
    finish = WorkQueue._finish

    def finish_and_delete(self, shard):
        finish(self, shard)
        if len(shards(folder)) == 6:
            (folder / "manifest.json").unlink()

    monkeypatch.setattr(WorkQueue, "_finish", finish_and_delete)
    assert "manifest.json: was deleted; run the same command again" in refusal(capsys, command(folder))
    monkeypatch.undo()
    main(command(folder))
    assert contents(folder) == contents(unbroken)


def test_another_set_in_place_of_the_folder_is_left_unchanged(command, monkeypatch, tmp_path, capsys):
    folder, other = tmp_path / "set", tmp_path / "other"
    main(command(other, "--model.init_args.guidance=1.0", "--trainer.limit_predict_batches=1"))

    def replace():
        shutil.rmtree(folder)
        shutil.copytree(other, folder)

    at_batch(monkeypatch, 2, replace)
    assert "manifest.json: is now the manifest of another pair set" in refusal(capsys, command(folder))
    assert contents(folder) == contents(other)


def test_sigterm_saves_the_batch_releases_the_claim_and_exits(unbroken, command, tmp_path):
    folder = tmp_path / "stopped"
    worker = start(command(folder, *SLOW))
    wait_until(lambda: partial_shards(folder))
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(60)
    assert worker.exitcode == 128 + signal.SIGTERM
    assert partial_shards(folder) and not claims(folder) and len(shards(folder)) < 6


def test_control_c_ends_with_one_line_and_releases_the_claim(command, tmp_path):
    folder, shown = tmp_path / "stopped", tmp_path / "shown.txt"
    worker = SERVER.Process(target=main_interruptible, args=(shown, command(folder, *SLOW)))
    worker.start()
    wait_until(lambda: partial_shards(folder))
    os.kill(worker.pid, signal.SIGINT)
    worker.join(60)
    assert worker.exitcode == 128 + signal.SIGINT and partial_shards(folder) and not claims(folder)
    assert shown.read_text().splitlines()[-1] == "diffgan: interrupted; the same command resumes"
    assert "Traceback" not in shown.read_text()


def main_interruptible(file, words):
    """The command as a terminal starts it, its standard error in a file."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = file.open("w", buffering=1)
    main(words)


@pytest.fixture(scope="module")
def slow_set(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs") / "slow"
    main(command(folder, *SLOW))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_at_random_moments_on_changing_numbers_of_processes(slow_set, command, tmp_path):
    folder, chance, kills = tmp_path / "killed", random.Random(), 0
    while kills < 20:
        if len(shards(folder)) == 6:
            (folder / chance.choice(shards(folder))).unlink()
        kills += kill_soon(folder, command, chance)
    main(command(folder, *SLOW))
    assert contents(folder) == contents(slow_set)


def kill_soon(folder, command, chance: random.Random) -> int:
    """Start one worker, two, or two of one trainer; kill some after they wrote something; returns how many died."""
    words = command(folder, *SLOW)
    kind = chance.choice(["one", "two", "ddp"])
    workers = start_two_processes([*words, *ON_TWO]) if kind == "ddp" else [start(words) for _ in range(len(kind) - 2)]
    before = len(contents(folder)) if folder.exists() else 0
    wait_until(lambda: not all(w.is_alive() for w in workers) or (folder.exists() and len(contents(folder)) != before))
    time.sleep(chance.uniform(0, 1.0))
    victims = workers if kind == "ddp" else chance.sample(workers, chance.randint(1, len(workers)))
    for worker in victims:
        worker.kill()
    for worker in workers:
        worker.join(120)
    assert all(worker.exitcode in (0, -signal.SIGKILL) for worker in workers)
    return sum(worker.exitcode == -signal.SIGKILL for worker in workers)


# ---- disks ----


def test_a_full_disk_ends_with_one_line_and_the_run_resumes_later(small_disk, unbroken, command, capsys):
    small = small_disk("size=36k")
    message = refusal(capsys, command(small))
    assert "No space left on device; fix this and run the same command again" in message
    assert not list(small.rglob("*.partial"))
    small_disk("size=2m")
    main(command(small))
    assert contents(small) == contents(unbroken)


def test_a_read_only_folder_is_refused_in_one_line(small_disk, command, capsys):
    small = small_disk("ro")
    assert f"{small}/manifest.json: Read-only file system" in refusal(capsys, command(small))


def test_a_file_in_place_of_the_folder_is_refused_in_one_line(command, capsys, tmp_path):
    (tmp_path / "set").write_text("")
    assert "set/manifest.json: " in refusal(capsys, command(tmp_path / "set", "--trainer.default_root_dir=null"))
