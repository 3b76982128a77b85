"""Formats of one record a line: plain text and JSON lines. Only a line feed ends a line, not U+2028 and its like."""

import json
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from diffgan.prompts.reader import Block, Reader, choose_column, not_utf8
from diffgan.prompts.source import Source


class _BadLine(ValueError):
    """The line, counted from 0 in the text that was parsed, and what is wrong with it."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line = line


class _Lines(Reader):
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
                raise self.source.refuse(f"line {line + error.line}: {error}") from error
            line, begin = line + piece.count(b"\n"), begin + len(piece)
            yield Block(begin, values)

    def read(self, begin: int, end: int) -> list[str | None]:
        return self._parse(self.source.read(begin, end - begin))

    def _parse(self, data: bytes) -> list[str | None]:
        return self._values(data.decode().removesuffix("\n").split("\n"))

    @abstractmethod
    def _values(self, lines: list[str]) -> list[str | None]:
        """One value a line."""


class TextReader(_Lines):
    """A line is a prompt."""

    def _values(self, lines: list[str]) -> list[str | None]:
        return lines


class JsonLinesReader(_Lines):
    """A line is an object; the value of one of its keys is the prompt, null is none. Blank lines are none either."""

    def __init__(self, source: Source, column: str | None):
        super().__init__(source)
        self.wanted, self.column = column, None

    def _values(self, lines: list[str]) -> list[str | None]:
        return [self._value(number, line) if line.strip() else None for number, line in enumerate(lines)]

    def _value(self, number: int, line: str) -> str | None:
        record = self._record(number, line)
        if self.column is None:
            self.column = choose_column(self.source, self.wanted, list(record))
        if self.column not in record:
            raise _BadLine(number, f"no {self.column!r}, but {', '.join(map(repr, record)) or 'nothing'}")
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
        except ValueError as error:  # a number with too many digits
            raise _BadLine(number, f"not JSON ({str(error).partition(';')[0]})") from error
        except RecursionError as error:
            raise _BadLine(number, "nested too deeply") from error
        if not isinstance(record, dict):
            raise _BadLine(number, f"not a JSON object, but {line.strip()[:40]}")
        return record
