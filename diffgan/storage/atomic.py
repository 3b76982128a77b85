"""Atomic writes of single files: a file appears under its name complete, or not at all. `folders.py`: of folders."""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.processes import Worker, is_dead, this_worker

PARTIAL = ".partial"  # suffix of files and folders that are not complete

# Partial files of a pair set: manifest, shard, claim or partial shard; then thread, machine, process id, process start.
PAIR_SET_PARTIAL = re.compile(
    r"(manifest\.json|pairs-\d+-of-\d+\.safetensors|\d+|\d+-\d+-\d+\.safetensors)"
    r"\.\d+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<born>\d*)\.partial"
)


def write_atomic(file: Path, data: bytes) -> None:
    """Write a file completely or not at all, also if the machine crashes. Its folder is created if needed.

    Raises:
        UserError: the system refuses (disk full, no permission). The partial file is removed.
    """
    partial = partial_path(file)
    try:
        write_synced(partial, data)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        message = f"{file}: cannot be written: {error.strerror}; fix this and run the same command again"
        raise UserError(message) from error


def partial_path(file: Path) -> Path:
    """Where this thread writes a file before it gets its name; the partial file's name identifies the writer."""
    worker, thread = this_worker(), threading.get_ident()
    return file.with_name(f"{file.name}.{thread}.{worker.machine}-{worker.pid}-{worker.born}{PARTIAL}")


def write_synced(file: Path, data: bytes) -> None:
    """Write bytes and wait until they are on the disk, not only in the system's cache. The folder is created."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def remove_stale_partials(folder: Path, max_age_seconds: float) -> None:
    """Remove partial files of a pair set whose writers are dead, in `folder` but not in its subfolders.

    Files of dead processes of this machine are removed at once, those of other machines when they are older than
    `max_age_seconds`. Files that do not belong to a pair set are not touched.
    """
    for partial in folder.glob(f"*{PARTIAL}"):
        match = PAIR_SET_PARTIAL.fullmatch(partial.name)
        if match is None or not partial.is_file():
            continue
        writer = Worker("", match["machine"], int(match["pid"]), match["born"])
        with contextlib.suppress(FileNotFoundError):  # another process removed it, or its writer renamed it
            if is_dead(writer) or time.time() - partial.stat().st_mtime > max_age_seconds:
                partial.unlink()
