"""Formats with one record per line: text and JSON lines. Only a line feed ends a line, not U+2028 or similar."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from diffgan.prompts.reader import Block, Reader, choose_column, not_utf8
from diffgan.prompts.source import Source


class _BadLine(ValueError):
    """A malformed line; line: its number, counted from 0 in the text that was parsed."""

    def __init__(self, line: int, problem: str):
        super().__init__(problem)
        self.line = line


class _LinesReader(Reader):
    """A file that is parsed in pieces of whole lines."""

    def __init__(self, source: Source):
        self.source, self.start = source, source.begin()

    def scan(self) -> Iterator[Block]:
        line, begin = 1, self.start
        for piece in self.source.pieces(begin):
            try:
                values = self._parse(piece)
            except UnicodeDecodeError as error:
                raise not_utf8(self.source, begin, error) from error
            except _BadLine as error:
                raise self.source.error(f"line {line + error.line}: {error}") from error
            line, begin = line + piece.count(b"\n"), begin + len(piece)
            yield Block(begin, values)

    def read(self, begin: int, end: int) -> list[str | None]:
        return self._parse(self.source.read(begin, end - begin))

    def _parse(self, data: bytes) -> list[str | None]:
        return self._values(data.decode().removesuffix("\n").split("\n"))

    @abstractmethod
    def _values(self, lines: list[str]) -> list[str | None]:
        """One value per line."""


class TextReader(_LinesReader):
    """Every line is a value."""

    def _values(self, lines: list[str]) -> list[str | None]:
        return lines


class JsonLinesReader(_LinesReader):
    """Every line is an object, whose key `column` has the value. Null and blank lines are missing values.

    Args:
        column: the key; None: chosen by `choose_column` from the keys of the first object.
    """

    def __init__(self, source: Source, column: str | None):
        super().__init__(source)
        self.requested_column, self.column = column, None

    def _values(self, lines: list[str]) -> list[str | None]:
        return [self._value(number, line) if line.strip() else None for number, line in enumerate(lines)]

    def _value(self, number: int, line: str) -> str | None:
        record = self._record(number, line)
        if self.column is None:
            self.column = choose_column(self.source, self.requested_column, list(record))
        if self.column not in record:
            raise _BadLine(number, f"no {self.column!r}, but {', '.join(map(repr, record)) or 'no keys'}")
        value = record[self.column]
        if value is not None and not isinstance(value, str):
            raise _BadLine(number, f"{self.column!r} is {json.dumps(value)[:40]}, not text")
        return value

    @staticmethod
    def _record(number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise _BadLine(number, f"not JSON ({error.msg} at character {error.colno})") from error
        except ValueError as error:  # an integer with too many digits
            raise _BadLine(number, f"not JSON ({str(error).partition(';')[0]})") from error
        except RecursionError as error:
            raise _BadLine(number, "nested too deeply") from error
        if not isinstance(record, dict):
            raise _BadLine(number, f"not a JSON object, but {line.strip()[:40]}")
        return record
