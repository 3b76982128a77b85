"""Atomic writes of folders: a folder is replaced completely, or not at all. `atomic.py`: of single files."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diffgan.errors import UserError
from diffgan.storage.atomic import PARTIAL

MARK, NEW, OLD = "written-by-diffgan", "new", "old"  # in the working folder


@contextlib.contextmanager
def replace_folder(folder: Path, record: str) -> Iterator[Path]:
    """Context manager: yields a new folder to fill, which replaces `folder` when the block ends without an error.

    The new folder is `<folder>.partial/new`. When all of it is on the disk, the previous folder is renamed to
    `<folder>.partial/old`, the new one to `<folder>`, and the old one is removed. If the process is killed, the old or
    the new folder has the name, or (only between the two renames) none; the next call then restores the old one.

    Args:
        folder: does not exist, or contains the file `record`. A symbolic link is followed.
        record: name of the file that marks a folder as one that may be replaced.

    Raises:
        UserError: `folder` or the working folder was not written by diffgan, another process is writing it, or the
            system refuses (disk full, no permission). The previous folder is kept.
    """
    target = Path(os.path.realpath(folder))
    try:
        _require_replaceable(target, record, folder)
        with _working_folder(target.with_name(target.name + PARTIAL), target) as work:
            (work / NEW).mkdir()
            yield work / NEW
            _sync_folder(work / NEW)
            _require_replaceable(target, record, folder)  # checked again: it may have changed meanwhile
            _swap(work, target)
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        reason = f"{error.strerror or error}{place}"
        raise UserError(f"{folder}: cannot be written ({reason}); fix this and run the same command again") from error


def _require_replaceable(target: Path, record: str, name: Path) -> None:
    if os.path.lexists(target) and not (target / record).is_file():
        raise UserError(f"{name}: exists and holds no {record}; choose another output")


@contextlib.contextmanager
def _working_folder(work: Path, target: Path) -> Iterator[Path]:
    """The locked working folder, which contains only its mark. At the end it is removed and `target` is in place."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / MARK).is_file() and any(work.iterdir()):
        raise UserError(f"{work}: exists and was not left by an interrupted command; move it away")
    with (work / MARK).open("a") as mark:
        _lock(mark, work)
        _restore(work, target)
        _empty(work)
        try:
            yield work
        finally:
            _restore(work, target)
            with contextlib.suppress(OSError):  # the next call tries again
                _empty(work)
                (work / MARK).unlink()
                work.rmdir()


def _lock(mark: IO[str], work: Path) -> None:
    """Raises UserError if another process has locked the folder. The system releases the lock when a process ends."""
    busy = UserError(f"{work}: another process is writing there; run the same command again when it has ended")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise busy from error
    except OSError:  # a file system without locks
        pass
    if not (work / MARK).is_file() or not os.path.samestat(os.fstat(mark.fileno()), (work / MARK).stat()):
        raise busy  # another process removed the folder after this one had opened the mark


def _restore(work: Path, target: Path) -> None:
    """Rename the old folder back if the new one was not renamed."""
    if (work / OLD).exists() and not os.path.lexists(target):
        (work / OLD).rename(target)


def _empty(work: Path) -> None:
    """Remove the folders that this module creates in the working folder, and nothing else."""
    for folder in (work / NEW, work / OLD):
        if folder.exists():
            shutil.rmtree(folder)


def _swap(work: Path, target: Path) -> None:
    if target.exists():
        target.rename(work / OLD)
    (work / NEW).rename(target)
    for folder in (work, target.parent):
        _sync(folder)


def _sync_folder(folder: Path) -> None:
    """Wait until a folder and everything in it are on the disk, not only in the system's cache."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
