"""Pair sets in tests: what a folder holds, and the line with which the command refuses it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from diffgan.__main__ import main
from diffgan.storage.atomic import PARTIAL

PAIRS, SHARD, BATCH = 44, 8, 3  # of the command in tests: six shards of three batches, the last one of two


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set, those in folders too, but the record of the run's configuration."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".yaml")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def parts(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("parts/*.safetensors"))


def claims(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("claims/*") if file.suffix != PARTIAL)


def shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


def refusal(capsys, words: list[str]) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("diffgan: error:")]
    return line


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def die_at_write(words: list[str], write: int) -> None:
    """Run the command and kill -9 this process between its `write`-th file's bytes and its rename."""
    fsync, calls = os.fsync, iter(range(write))

    def fatal(descriptor):
        fsync(descriptor)
        if next(calls) == write - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fatal
    main(words)
