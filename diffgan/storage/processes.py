"""Who is at work: processes told apart across machines, containers and reused process numbers."""

import hashlib
import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Worker(NamedTuple):
    """A process.

    machine: 8 hexadecimal digits, another one in every container and after every start of the machine.
    born: when the process started, in the system's own count; it tells the process from a later one with its `pid`.
    """

    host: str
    machine: str
    pid: int
    born: str


def this_worker() -> Worker:
    """The process that asks."""
    return Worker(socket.gethostname(), machine(), os.getpid(), _born(os.getpid()) or "")


def is_dead(worker: Worker) -> bool:
    """Whether a process of this machine has ended; false for those of other machines, of which nothing is known."""
    return worker.machine == machine() and _born(worker.pid) != worker.born


@cache
def machine() -> str:
    """The `machine` of this process."""
    try:
        start = Path("/proc/sys/kernel/random/boot_id").read_text() + str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        start = str(uuid.getnode())
    return hashlib.blake2b(f"{socket.gethostname()} {start}".encode(), digest_size=4).hexdigest()


def _born(pid: int) -> str | None:
    """When a process of this machine started; None if there is none, or only what its parent has not collected."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except OSError:
        return None if Path("/proc/self/stat").exists() else _signalled(pid)


def _signalled(pid: int) -> str | None:
    """Without /proc: an empty string for a process that can be sent a signal."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return ""
