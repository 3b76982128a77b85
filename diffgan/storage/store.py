"""The interface of a store: a folder of whole files, on a disk or behind a URL that fsspec opens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from diffgan.errors import UserError

MAX_READ_BYTES = 4 << 30  # of a file that is read as a whole; shards are memory-mapped instead


class Entry(NamedTuple):
    """What a listing reports about a file: bytes, and the time it was written in seconds since 1970.

    0 stands for what is unknown: the index pages of web servers state neither.
    """

    size: int
    modified: float


class Store(ABC):
    """Whole files by name. A name may begin with one folder ("claims/00003").

    Readers see a file completely or not at all, and the last writer wins. Every method raises UserError, with the file
    and the reason, if the system or the network refuses permanently.

    Attributes:
        place: the path or URL as the user gave it, for messages.
    """

    place: str

    @abstractmethod
    def entries(self, folder: str = "") -> dict[str, Entry]:
        """The files directly in the store's folder, or in its subfolder, by name; empty if it does not exist."""

    @abstractmethod
    def read(self, name: str, max_bytes: int = MAX_READ_BYTES) -> bytes | None:
        """The content of a file; None if it does not exist.

        Args:
            max_bytes: a longer file is refused. Of one on this machine or behind http(s) no more is read; other
                services are asked for the whole file first.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, replacing an existing one."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Write a file if none of this name exists; returns whether it was written.

        Of two concurrent callers only one succeeds, as far as the remote service supports it.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file; no error if it does not exist."""

    @abstractmethod
    def local(self, name: str) -> Path | None:
        """Path of a local file to memory-map: the file itself or a copy; None if it does not exist."""

    def forget(self, name: str) -> bool:
        """Drop the damaged copy that `local` made; returns whether a new call of `local` can give another one."""
        return False

    def sweep(self, seconds: float, folders: Sequence[str]) -> None:  # noqa: B027, remote writes leave no partial files
        """Remove partial files of a pair set's dead writers, in the store's folder and in its subfolders `folders`.

        Those of other machines are removed when they are older than `seconds`.
        """

    def prune(self, folders: Sequence[str]) -> None:  # noqa: B027, object stores have no folders
        """Remove those of the subfolders `folders` that are empty."""

    def too_long(self, name: str, max_bytes: int) -> UserError:
        """The error that reports a file which is longer than is read."""
        return UserError(f"{self.path(name)}: has more than the {max_bytes} bytes that are read of such a file")

    def path(self, name: str) -> str:
        """Path or URL of a file, for messages."""
        return f"{self.place.rstrip('/')}/{name}"
