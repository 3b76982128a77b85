"""Work on several processes: what they exchange, and that all end, with one line, when one of them ends."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from diffgan.cli.launch import run_on_processes
from diffgan.errors import UserError

PROGRAM = """
import sys
from functools import partial
from pathlib import Path
from diffgan.cli import main as command
from diffgan.cli.launch import run_on_processes
from tests.cli.test_launch import note_and_sleep

if __name__ == "__main__":
    command._run = lambda words: run_on_processes(partial(note_and_sleep, Path(words[0])), 2)
    command.main(sys.argv[1:])
"""


def gather_rows(folder, split, local):
    """Seven rows in batches of two; the third and last turn of the second process repeats a batch."""
    assert local == split.rank and torch.get_num_threads() == 1
    rows = torch.tensor([row for batch in split.batches(7, 2) for row in batch])
    together = split.in_order(rows * 10, 7, 2)
    assert split.agree(split.world == 2) and not split.agree(split.rank == 0)
    (folder / f"{split.rank}.txt").write_text(" ".join(map(str, together.tolist())))


def fail_at_rank(rank, split, local):
    if split.rank == rank:
        raise UserError("captions.txt: is missing")
    split.agree(True)  # waits for the others


def fail_everywhere(split, local):
    raise UserError("captions.txt: is missing")


def die(split, local):
    if split.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    split.agree(True)


def note_and_sleep(folder, split, local):
    (folder / f"{split.rank}.pid").write_text(str(os.getpid()))
    time.sleep(600)


def test_every_process_gets_all_rows_in_order(tmp_path):
    run_on_processes(partial(gather_rows, tmp_path), 2)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["0 10 20 30 40 50 60"] * 2


@pytest.mark.parametrize("work", [partial(fail_at_rank, 0), partial(fail_at_rank, 1), fail_everywhere])
def test_a_failure_ends_all_processes_with_one_line(work, capfd):
    with pytest.raises(SystemExit) as exit:
        run_on_processes(work, 2)
    assert exit.value.code == 1
    assert capfd.readouterr().err == "diffgan: error: captions.txt: is missing\n"


def test_a_killed_process_is_reported(capfd):
    with pytest.raises(
        UserError, match="process 1 terminated with signal SIGKILL, one of 2; the others were ended too"
    ):
        run_on_processes(die, 2)
    assert capfd.readouterr().err == ""


def is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_no_process_survives_the_command(number, code, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    words = [sys.executable, str(tmp_path / "program.py"), str(tmp_path)]
    command = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    files = [tmp_path / f"{rank}.pid" for rank in range(2)]
    end = time.monotonic() + 200
    while not all(file.exists() and file.read_text() for file in files):
        assert command.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    command.send_signal(number)
    errors = command.communicate(timeout=60)[1]
    assert command.returncode == code
    assert errors == ("diffgan: interrupted\n" if number == signal.SIGINT else "")
    end = time.monotonic() + 30
    while any(is_alive(int(file.read_text())) for file in files):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_another_number_than_torchruns_is_refused(monkeypatch):
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="--devices: 2, but torchrun has started 4 processes; omit --devices"):
        run_on_processes(fail_everywhere, 2)
