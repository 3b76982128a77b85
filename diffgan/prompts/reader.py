"""The interface of readers, one for each file format."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.prompts.source import Source

DEFAULT_COLUMNS = ("prompt", "caption", "text")  # used when no column is named


class Block(NamedTuple):
    """Consecutive values of a file, and the position after them.

    end: a position that the reader can return to: a byte, or a row of Parquet.
    values: text, or None for a missing value.
    """

    end: int
    values: list[str | None]


class Reader(ABC):
    """The values of a file: read once as a whole in blocks, then block by block.

    Attributes:
        start: position of the first value.
    """

    start: int

    @abstractmethod
    def scan(self) -> Iterator[Block]:
        """All values in order. Raises UserError, with the line, row or byte, if the file is malformed."""

    @abstractmethod
    def read(self, begin: int, end: int) -> list[str | None]:
        """The values of the block between these positions. Raises ValueError if the file has changed since `scan`."""


def choose_column(source: Source, column: str | None, names: Sequence[str]) -> str:
    """The column that contains the prompts.

    Args:
        source: the file, for messages.
        column: the column that the user named, or None.
        names: all columns.

    Raises:
        UserError: there is no such column, or more than one, or it is not clear which one to use.
    """
    chosen = column or _default_column(names)
    count = list(names).count(chosen)
    if count == 1:
        return chosen
    if chosen is None:
        problem = "it is not clear which column holds the prompts"
    elif count:
        problem = f"there are {count} columns {chosen!r}"
    else:
        problem = f"there is no column {chosen!r}"
    raise source.error(f"{problem}; set `column` to one of {', '.join(map(repr, names)) or '(no column)'}")


def _default_column(names: Sequence[str]) -> str | None:
    """The only column, or the only one with a default name; None if there is no such column."""
    if len(names) == 1:
        return names[0]
    candidates = [name for name in DEFAULT_COLUMNS if name in names]
    return candidates[0] if len(candidates) == 1 else None


def not_utf8(source: Source, begin: int, error: UnicodeDecodeError) -> UserError:
    """The error for bytes that cannot be decoded; `begin`: position in the file of the bytes that were decoded."""
    return source.error(f"byte {begin + error.start} is not UTF-8; save the file as UTF-8 text")
