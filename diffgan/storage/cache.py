"""Copies of remote files on this machine, to be memory-mapped."""

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from diffgan.errors import UserError
from diffgan.storage.atomic import PARTIAL

CACHE_GB = 100.0
COPY = re.compile(r"[0-9a-f]{32}-.+", re.DOTALL)  # what keys look like; other files in the folder are the user's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
ABANDONED_SECONDS = 3600  # an unfinished copy that nobody has written to for so long is rubbish


def cache_folder() -> Path:
    """`$DIFFGAN_CACHE`, or `.cache/diffgan` in the user's home."""
    return Path(os.environ.get("DIFFGAN_CACHE") or Path.home() / ".cache" / "diffgan")


class Cache:
    """A folder of copies that all processes of a machine share; the least recently used make room for new ones.

    The limit counts the copies in the folder: one that is mapped keeps its disk until it is closed. One copy is kept,
    however large. Whatever else is in the folder is left alone and does not count.

    Args:
        folder: made when it is needed.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = folder, limit

    def file(self, key: str, size: int, fetch: Callable[[Path], None]) -> Path:
        """The copy under this key, of `size` bytes; `fetch` writes it to the path that it is given. A key
        looks like `COPY`.

        Of several processes that ask for one copy, one fetches it. Another may make room at any time, so whoever opens
        the file asks again if it is gone.

        Raises:
            UserError: the copy cannot be written.
        """
        file = self.folder / key
        try:
            if not _used(file, size):
                with self._locked(key):
                    if not _used(file, size):  # another process has fetched it meanwhile
                        self._make_room(size)
                        self._fetch(file, fetch)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        return file

    def drop(self, key: str) -> None:
        """Forget a copy."""
        (self.folder / key).unlink(missing_ok=True)

    def _fetch(self, file: Path, fetch: Callable[[Path], None]) -> None:
        partial = file.with_name(f"{file.name}{PARTIAL}")  # one writer: it holds the lock
        try:
            fetch(partial)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Keys share a few locks, whose files stay."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{key[0]}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # let go of when it is closed, or the process dies
            yield

    def _copies(self) -> list[tuple[float, int, Path]]:
        """When it was last used, bytes and path of every copy; of unfinished ones those that nobody writes to."""
        copies = []
        for file in filter(lambda file: COPY.fullmatch(file.name), self.folder.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                state = file.lstat()
                abandoned = time.time() - state.st_mtime > ABANDONED_SECONDS
                if stat.S_ISREG(state.st_mode) and (file.suffix != PARTIAL or abandoned):
                    copies.append((state.st_mtime, state.st_size, file))
        return copies

    def _make_room(self, size: int) -> None:
        copies = self._copies()
        taken = size + sum(held for _, held, _ in copies)
        for _, held, file in sorted(copies):
            if taken <= self.limit:
                return
            file.unlink(missing_ok=True)
            taken -= held


def unwritable(folder: Path, error: OSError) -> UserError:
    """The error that names the folder of the copies."""
    advice = "free some disk, lower cache_gb, or set DIFFGAN_CACHE to another folder"
    return UserError(f"cache folder {folder}: cannot be written: {error.strerror}; {advice}")


def is_disks_fault(error: OSError, file: Path) -> bool:
    """Whether this machine, not the service, kept a copy from being written to `file`."""
    return error.errno in FULL or str(error.filename) == str(file)


def _used(file: Path, size: int) -> bool:
    """Whether there is a copy of this size; it counts as used now."""
    try:
        whole = file.stat().st_size == size
        if whole:
            os.utime(file)
        return whole
    except FileNotFoundError:
        return False
