"""Folders that are replaced in whole or not at all."""

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
def replaced(folder: Path, record: str) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends without an error.

    It is filled in `<folder>.partial/new` and renamed when all of it is on the disk; the folder there was before is
    renamed to `<folder>.partial/old` until then. A process that is killed leaves the old folder, the new one, or (only
    between the two renames) none under the name; the next call restores the old one and removes the rest.

    Args:
        folder: does not exist, or holds the file `record`; a symbolic link is followed.
        record: name of the file that tells a folder which may be replaced from any other.

    Raises:
        UserError: `folder` or the working folder is somebody else's, another process is writing it, or the system
            refuses (disk full, no permission). The old folder is still there.
    """
    target = Path(os.path.realpath(folder))
    try:
        _require_replaceable(target, record, folder)
        with _working_folder(target.with_name(target.name + PARTIAL), target) as work:
            (work / NEW).mkdir()
            yield work / NEW
            _sync(work / NEW)
            _require_replaceable(target, record, folder)  # a moment ago it was, or did not exist
            _swap(work, target)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        reason = f"{error.strerror or error}{where}"
        raise UserError(f"{folder}: cannot be written ({reason}); mend it and run the same command") from error


def _require_replaceable(target: Path, record: str, name: Path) -> None:
    if os.path.lexists(target) and not (target / record).is_file():
        raise UserError(f"{name}: exists and holds no {record}; choose another output")


@contextlib.contextmanager
def _working_folder(work: Path, target: Path) -> Iterator[Path]:
    """The folder beside `target`, empty but for its mark; at the end it is gone, and `target` in place."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / MARK).is_file() and any(work.iterdir()):
        raise UserError(f"{work}: exists and was not left there by a killed command; move it away")
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
    """Raises UserError if another process holds the folder. A lock ends with its process, however that ends."""
    busy = UserError(f"{work}: another process is writing there; run the same command again when it has ended")
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise busy from error
    except OSError:  # a file system without locks
        pass
    if not (work / MARK).is_file() or not os.path.samestat(os.fstat(mark.fileno()), (work / MARK).stat()):
        raise busy  # the other one removed the folder after this one had found it


def _restore(work: Path, target: Path) -> None:
    """Give the old folder its name back if the new one did not get it."""
    if (work / OLD).exists() and not os.path.lexists(target):
        (work / OLD).rename(target)


def _empty(work: Path) -> None:
    """Remove what this module writes there, and nothing else."""
    for folder in (work / NEW, work / OLD):
        if folder.exists():
            shutil.rmtree(folder)


def _swap(work: Path, target: Path) -> None:
    if target.exists():
        target.rename(work / OLD)
    (work / NEW).rename(target)
    for folder in (work, target.parent):
        _sync_file(folder)


def _sync(folder: Path) -> None:
    """Have a folder and all in it written to the disk, not only to the system's memory."""
    for path in folder.rglob("*"):
        _sync_file(path)
    _sync_file(folder)


def _sync_file(path: Path) -> None:
    """A file or a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
