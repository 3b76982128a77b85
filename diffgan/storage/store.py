"""A folder of files that are there in whole or not at all, on a disk or behind any URL that fsspec opens."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


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
