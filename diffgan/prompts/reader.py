"""What every format's reader offers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from diffgan.errors import UserError
from diffgan.prompts.source import Source

USUAL = ("prompt", "caption", "text")  # columns that are taken without being asked for


class Block(NamedTuple):
    """Some consecutive values of a file, and the position behind them.

    A position is whatever the format can go back to: a byte, or a row of Parquet. None is a value that is not there.
    """

    end: int
    values: list[str | None]


class Reader(ABC):
    """The values of a file: once as a whole, then from one position to another.

    Attributes:
        start: position of the first value.
    """

    start: int

    @abstractmethod
    def scan(self) -> Iterator[Block]:
        """All values in order. Raises: UserError naming the place of what cannot be read."""

    @abstractmethod
    def read(self, begin: int, end: int) -> list[str | None]:
        """The values of a block that lay between these positions. Raises: ValueError where the file is another now."""


def choose_column(source: Source, wanted: str | None, names: Sequence[str]) -> str:
    """The column that holds the prompts.

    Raises:
        UserError: there is no such column, or it is not clear which one it is.
    """
    usual = [name for name in USUAL if name in names]
    found = wanted or (names[0] if len(names) == 1 else usual[0] if len(usual) == 1 else None)
    count = list(names).count(found)
    if count == 1:
        return found
    if found is None:
        problem = "it is not clear which column holds the prompts"
    else:
        problem = f"there are {count} columns {found!r}" if count else f"there is no column {found!r}"
    raise source.refuse(f"{problem}; set `column` to one of {', '.join(map(repr, names)) or '(no column)'}")


def not_utf8(source: Source, begin: int, error: UnicodeDecodeError) -> UserError:
    """The error for bytes from `begin` on that do not decode."""
    return source.refuse(f"byte {begin + error.start} is not UTF-8; save the file as UTF-8 text")
