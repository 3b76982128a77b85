"""Run a command on a mutant in a process of its own: exit code, messages, time, memory, changed files."""

import hashlib
import os
import random
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import NamedTuple

from diffgan.__main__ import main
from tests.fuzz.mutations import Mutant
from tests.fuzz.targets import TARGETS, Target, may_change
from tests.processes import SERVER

SECONDS = 60
MEGABYTES = 1000  # above the command on the valid file
KILLED_AT_MEGABYTES = 6000  # to protect the machine
MOST_LINES = 3  # of standard error, beside those of libraries
LIBRARIES = re.compile(r"warn|^\s|^$|it/s|\d%\||distilling: |pairs: |^\(|GPU|TPU|HPU|^Trainer|^Loading|LOCAL_RANK")


class Outcome(NamedTuple):
    """What a command did with a mutant.

    code: exit code; None if it ran out of time.  errors: standard error.  megabytes: highest memory.
    changed: files of before that are different or gone, and that the command may not change.
    """

    target: str
    mutant: Mutant
    code: int | None
    errors: str
    seconds: float
    megabytes: float
    changed: list[str]

    @property
    def accepted(self) -> bool:
        return self.code == 0

    def faults(self, megabytes: float) -> list[str]:
        """What is wrong about it; `megabytes`: memory of the command on the valid file."""
        own = [line for line in self.errors.splitlines() if not LIBRARIES.search(line)]
        excess = self.megabytes - megabytes
        found = {
            f"ran for more than {SECONDS} s": self.code is None,
            f"exit code {self.code}": self.code not in (None, 0, 1, 2),
            "traceback": "Traceback (most recent call last)" in self.errors,
            "no message": self.code in (1, 2) and "diffgan: error: " not in self.errors,
            f"{len(own)} lines on standard error": len(own) > MOST_LINES and "Traceback" not in self.errors,
            f"changed {', '.join(self.changed)}": bool(self.changed),
            f"{excess:.0f} MB more than on the valid file": excess > MEGABYTES,
        }
        return [fault for fault, is_found in found.items() if is_found]


def mutants(target: Target, data: bytes, seed: str, count: int) -> list[Mutant]:
    """`count` mutants of a file's content that differ from it."""
    dice, made = random.Random(seed), []
    while len(made) < count:
        mutant = target.mutations[len(made) % len(target.mutations)](data, dice)
        if mutant.data != data:
            made.append(mutant)
    return made


def run(name: str, mutant: Mutant, template: Path, folder: Path) -> Outcome:
    """Run the command of a target in a copy of the workspace, with the mutant in place of its file."""
    target = TARGETS[name]
    shutil.copytree(template, folder, symlinks=True)
    (folder / target.file).write_bytes(mutant.data)
    before = _digests(folder)
    started = time.monotonic()
    code = run_in(folder, folder.with_suffix(".log"), main, list(target.words))
    seconds = time.monotonic() - started
    after = _digests(folder)
    changed = [name for name, digest in before.items() if after.get(name) != digest]
    if code == 0:
        changed = [name for name in changed if not may_change(target, name)]
    errors = folder.with_suffix(".log").read_text(errors="replace")
    memory = folder.with_suffix(".memory")
    megabytes = float(memory.read_text()) if memory.is_file() else float("inf")
    shutil.rmtree(folder)
    return Outcome(name, mutant, code, errors, seconds, megabytes, changed)


def run_in(folder: Path, log: Path, function, *args) -> int | None:
    """Exit code of a forked process that calls `function(*args)` in a folder; None if it ran out of time."""
    process = SERVER.Process(target=_child, args=(folder, log, function, args))
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return None
    return process.exitcode


def _child(folder: Path, log: Path, function, args: tuple) -> None:
    """Call the function with standard output and error in a file; write the process's highest memory beside it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(descriptor, "w", buffering=1)
    os.chdir(folder)
    threading.Thread(target=_watch_memory, daemon=True).start()
    try:
        function(*args)
    finally:
        log.with_suffix(".memory").write_text(str(_memory("VmHWM")))


def _watch_memory() -> None:
    """End the process before it takes the machine's memory."""
    while _memory("VmRSS") < KILLED_AT_MEGABYTES:
        time.sleep(0.1)
    os._exit(99)


def _memory(field: str) -> float:
    """Megabytes that the system reports of this process."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1000


def _digests(folder: Path) -> dict[str, str]:
    """Digest of every file of a workspace, by name; what links lead to is not visited."""
    files = (path for path in folder.rglob("*") if path.is_file() and "teacher" not in path.parts)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
