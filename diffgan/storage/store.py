"""A folder of files that are there in whole or not at all, on a disk or behind any URL that fsspec opens."""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.storage.atomic import PARTIAL, partial_of, sweep_partials, write_partial, write_whole
from diffgan.storage.cache import CACHE_GB, Cache, cache_folder


class Entry(NamedTuple):
    """What is known of a file without reading it: its size in bytes, and when it was written (seconds since 1970)."""

    size: int
    modified: float


class Store(ABC):
    """Whole files by name; a name may have one folder in front ("claims/00003").

    Readers see a file whole or not at all, and the last writer wins. Every method raises UserError, naming the file and
    the reason, where the system or the network refuses for good.
    """

    place: str  # the folder as the user gave it, for messages

    @abstractmethod
    def entries(self, folder: str = "") -> dict[str, Entry]:
        """The files directly in the folder or in one below it, by name; none where there is no such folder."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is no such file."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, over an older one if need be."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless there is one; whether it was written. Of two callers one wins (if the remote can)."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file that may be gone already."""

    @abstractmethod
    def local(self, name: str) -> Path | None:
        """A file of this machine to be memory-mapped: the file itself or a copy; None where there is no such file."""

    def forget(self, name: str) -> bool:
        """Drop the copy that `local` made, which is damaged; whether there can be a better one."""
        return False

    def sweep(self, seconds: float, folders: Sequence[str]) -> None:  # noqa: B027, nothing where no file is half there
        """Remove what dead writers of a pair set left half-written in the store's folder and in these below it (of
        other machines: after so many seconds)."""

    def prune(self, folders: Sequence[str]) -> None:  # noqa: B027, nothing where there are no folders
        """Remove those of the folders that are empty."""

    def path(self, name: str) -> str:
        """How messages call a file."""
        return f"{self.place.rstrip('/')}/{name}"


class Folder(Store):
    """A folder of this machine, or of a network file system it mounts."""

    def __init__(self, folder: Path):
        self.folder, self.place = folder, str(folder)

    def entries(self, folder: str = "") -> dict[str, Entry]:
        found = {}
        with contextlib.suppress(FileNotFoundError), self._explained(folder), os.scandir(self.folder / folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # removed in the meantime
                    if file.is_file() and not file.name.endswith(PARTIAL):
                        state = file.stat()
                        found[f"{folder}/{file.name}".lstrip("/")] = Entry(state.st_size, state.st_mtime)
        return dict(sorted(found.items()))

    def read(self, name: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError), self._explained(name):
            return (self.folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)

    def create(self, name: str, data: bytes) -> bool:
        file = self.folder / name
        partial = partial_of(file)
        with self._explained(name):
            try:
                write_partial(partial, data)
                os.link(partial, file)  # fails if there is one: content and name come in one step
            except FileExistsError:
                if not file.parent.is_dir():  # it is the folder's place that is taken
                    raise
                return False
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
        return True

    def remove(self, name: str) -> None:
        with self._explained(name):
            (self.folder / name).unlink(missing_ok=True)

    def local(self, name: str) -> Path | None:
        file = self.folder / name
        return file if file.is_file() else None

    def sweep(self, seconds: float, folders: Sequence[str]) -> None:
        for folder in ("", *folders):
            with contextlib.suppress(FileNotFoundError), self._explained(folder):
                sweep_partials(self.folder / folder, seconds)

    def prune(self, folders: Sequence[str]) -> None:
        for folder in folders:
            with contextlib.suppress(OSError):  # not empty, or gone already
                (self.folder / folder).rmdir()

    @contextlib.contextmanager
    def _explained(self, name: str):
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"{self.path(name)}: {error.strerror}; mend it and run the same command") from error


def open_store(place: str | Path, cache_gb: float = CACHE_GB) -> Store:
    """The store at a path or URL; of remote files, copies of up to `cache_gb` (10^9 bytes) are kept in `cache_folder`.

    Raises:
        UserError: the URL's protocol is unknown or its package not installed, or `cache_gb` is not above 0.
    """
    protocol, separator, path = str(place).partition("://")
    if not separator or protocol in ("file", "local"):
        return Folder(Path(path or place))
    if not cache_gb > 0:
        raise UserError(f"cache_gb: {cache_gb} must be above 0")
    from diffgan.storage.remote import Remote  # which is a Store

    return Remote(str(place), Cache(cache_folder(), cache_gb * 1e9))
