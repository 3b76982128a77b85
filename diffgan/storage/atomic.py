"""Files that are there in whole or not at all, and the folders of what ships with the package."""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError
from diffgan.storage.processes import Worker, is_dead, this_worker

PARTIAL = ".partial"
OWN_PARTIAL = re.compile(  # of a pair set: manifest, shard, claim or part; then thread, machine, process, its start
    r"(manifest\.json|pairs-\d+-of-\d+\.safetensors|\d+|\d+-\d+-\d+\.safetensors)"
    r"\.\d+\.(?P<machine>[0-9a-f]{8})-(?P<pid>\d+)-(?P<born>\d*)\.partial"
)


def write_atomic(file: Path, data: bytes) -> None:
    """Write a file that is there in whole or not at all, after a crash too; its folder is made.

    Raises:
        UserError: the system refuses (disk full, no permission); nothing is left behind.
    """
    partial = partial_of(file)
    try:
        write_partial(partial, data)
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{file}: cannot be written: {error.strerror}; mend it and run the same command") from error


def partial_of(file: Path) -> Path:
    """Where this thread writes a file before the file gets its name; the name tells whose it is."""
    worker, thread = this_worker(), threading.get_ident()
    return file.with_name(f"{file.name}.{thread}.{worker.machine}-{worker.pid}-{worker.born}{PARTIAL}")


def write_partial(partial: Path, data: bytes) -> None:
    """Write bytes to the disk (its folder is made), not only to the system's memory."""
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as target:
        target.write(data)
        target.flush()
        os.fsync(target.fileno())


def sweep_partials(folder: Path, seconds: float) -> None:
    """Remove what dead writers of a pair set left half-written in a folder, not below it: those of this machine's
    processes at once, others when they are older than `seconds`. Nobody else's files are touched."""
    for partial in folder.glob(f"*{PARTIAL}"):
        if (found := OWN_PARTIAL.fullmatch(partial.name)) is None or not partial.is_file():
            continue
        writer = Worker("", found["machine"], int(found["pid"]), found["born"])
        with contextlib.suppress(FileNotFoundError):  # another sweeper was faster, or it got its name
            if is_dead(writer) or time.time() - partial.stat().st_mtime > seconds:
                partial.unlink()


def write_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write tensors and a header of strings as safetensors, whole or not at all; errors as `write_atomic`."""
    write_atomic(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))
