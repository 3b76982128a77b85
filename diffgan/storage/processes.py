"""Identities of processes, unique across machines, containers and reused process ids."""

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Worker(NamedTuple):
    """The identity of a process.

    host: name of the machine, for messages.
    machine: 8 hexadecimal digits, different in every container and after every start of the machine.
    pid: process id.
    born: when the process started, in the system's clock ticks; distinguishes it from a later process with its `pid`.
    """

    host: str
    machine: str
    pid: int
    born: str


def this_worker() -> Worker:
    """The identity of the calling process."""
    return Worker(socket.gethostname(), machine(), os.getpid(), _born(os.getpid()) or "")


def is_dead(worker: Worker) -> bool:
    """Whether a process of this machine has ended; False for processes of other machines, whose state is unknown."""
    return worker.machine == machine() and _born(worker.pid) != worker.born


@cache
def machine() -> str:
    """`Worker.machine` of the calling process."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text() + str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        start = str(uuid.getnode())
    return hashlib.blake2b(f"{socket.gethostname()} {start}".encode(), digest_size=4).hexdigest()


def _born(pid: int) -> str | None:
    """When a process of this machine started; None if it does not exist or is a zombie."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        return None if Path("/proc/self/stat").exists() else _born_without_proc(pid)


def _born_without_proc(pid: int) -> str | None:
    """As `_born` on systems without /proc: an empty string for a process that exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
