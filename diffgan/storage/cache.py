"""Local copies of remote files, to be memory-mapped."""

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

CACHE_GB = 100.0  # default limit, in units of 10^9 bytes
KEY = re.compile(r"[0-9a-f]{32}-.+", re.DOTALL)  # names of copies; other files in the folder belong to the user
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
ABANDONED_SECONDS = 3600  # a partial copy that was not written to for this long is removed


def cache_folder() -> Path:
    """`$DIFFGAN_CACHE`, or `.cache/diffgan` in the user's home folder."""
    return Path(os.environ.get("DIFFGAN_CACHE") or Path.home() / ".cache" / "diffgan")


class Cache:
    """A folder of copies that all processes of a machine share; the least recently used ones are evicted.

    The limit applies to the copies in the folder: the disk space of an evicted copy that is still memory-mapped is
    freed when it is closed. At least one copy is kept, whatever its size. Other files in the folder are neither
    counted nor removed.

    Args:
        folder: is created when it is needed.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = folder, limit

    def file(self, key: str, size: int | None, fetch: Callable[[Path], None]) -> Path:
        """Path of the copy with this key and size, fetched if there is none.

        Other copies are evicted when it has arrived, by its actual size: what a server says about it removes nothing.
        Meanwhile the folder may hold the limit and this copy.

        Of several processes that request the same copy, one fetches it. Another process may evict it at any time, so a
        caller that cannot open the file calls again.

        Args:
            key: name of the copy, must match `KEY`.
            size: bytes; None if the server does not say.
            fetch: writes the copy to the path that it is called with.

        Raises:
            UserError: the copy cannot be written.
        """
        file = self.folder / key
        try:
            if not _touch_if_complete(file, size):
                with self._locked(key):
                    if not _touch_if_complete(file, size):  # another process may have fetched it meanwhile
                        self._fetch(file, fetch)
        except OSError as error:
            raise cache_error(self.folder, error) from error
        return file

    def drop(self, key: str) -> None:
        """Remove a copy; no error if it does not exist."""
        (self.folder / key).unlink(missing_ok=True)

    def _fetch(self, file: Path, fetch: Callable[[Path], None]) -> None:
        partial = file.with_name(f"{file.name}{PARTIAL}")  # the lock allows one writer
        try:
            fetch(partial)
            self._evict(partial.stat().st_size)
            os.replace(partial, file)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        """Hold the lock of a key. There is one lock for each first character; lock files are never removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / f"{key[0]}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when the file is closed or the process ends
            yield

    def _copies(self) -> list[tuple[float, int, Path]]:
        """Time of last use, bytes and path of every copy, including partial copies that nobody writes to."""
        copies = []
        for file in self.folder.iterdir():
            if not KEY.fullmatch(file.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
                status = file.lstat()
                abandoned = time.time() - status.st_mtime > ABANDONED_SECONDS
                if stat.S_ISREG(status.st_mode) and (file.suffix != PARTIAL or abandoned):
                    copies.append((status.st_mtime, status.st_size, file))
        return copies

    def _evict(self, size: int) -> None:
        """Remove the least recently used copies until another `size` bytes fit into the limit."""
        copies = self._copies()
        total = size + sum(copy_size for _, copy_size, _ in copies)
        for _, copy_size, file in sorted(copies):
            if total <= self.limit:
                return
            file.unlink(missing_ok=True)
            total -= copy_size


def cache_error(folder: Path, error: OSError) -> UserError:
    """The error that reports that the cache folder cannot be written."""
    advice = "free some disk, lower cache_gb, or set DIFFGAN_CACHE to another folder"
    return UserError(f"cache folder {folder}: cannot be written: {error.strerror}; {advice}")


def is_local_disk_error(error: OSError, file: Path) -> bool:
    """Whether the local disk, not the remote service, caused an error while a copy was written to `file`."""
    return error.errno in DISK_ERRORS or str(error.filename) == str(file)


def _touch_if_complete(file: Path, size: int | None) -> bool:
    """Whether there is a copy of this size, of any if it is None. If so, its time of last use is set to now."""
    try:
        complete = file.stat().st_size == size or (size is None and file.is_file())
        if complete:
            os.utime(file)
        return complete
    except FileNotFoundError:
        return False
