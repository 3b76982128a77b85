"""CSV and TSV files with a header line. Quoted values may contain line feeds, so blocks end where records end."""

import csv
import io
from collections.abc import Iterator

from diffgan.prompts.reader import DEFAULT_COLUMNS, Block, Reader, choose_column, not_utf8
from diffgan.prompts.source import PIECE_BYTES, Source


class TableReader(Reader):
    """The values of one column; an empty line is a missing value.

    Args:
        column: None: chosen by `choose_column`, but the only column must have a default name.
        delimiter: between two values of a record; the quote is `"`, doubled within a value.
    """

    def __init__(self, source: Source, column: str | None, delimiter: str):
        self.source, self.delimiter = source, delimiter
        self.rows = _Rows(source, delimiter)  # `scan` continues after the header
        self.names = next(filter(None, self.rows), [])
        self._require_header(column)
        self.column = self.names.index(choose_column(source, column, self.names)) if self.names else 0
        self.start = self.rows.end

    def scan(self) -> Iterator[Block]:
        values, begin, rows = [], self.start, self.rows
        for row in rows:
            try:
                values.append(self._value(row))
            except ValueError as error:
                raise self.source.error(f"line {rows.line}: {error}") from error
            if rows.end >= begin + PIECE_BYTES:
                yield Block(rows.end, values)
                values, begin = [], rows.end
        yield Block(rows.end, values)

    def read(self, begin: int, end: int) -> list[str | None]:
        text = io.StringIO(self.source.read(begin, end - begin).decode(), newline="\n")
        try:
            return [self._value(row) for row in csv.reader(text, delimiter=self.delimiter, strict=True)]
        except csv.Error as error:
            raise ValueError(str(error)) from error

    def _require_header(self, column: str | None) -> None:
        """Raises UserError if the first line may be a prompt, or have another delimiter."""
        if column is None and len(self.names) == 1 and self.names[0] not in DEFAULT_COLUMNS:
            name = self.names[0]
            advice = f"a header line 'prompt' above the first prompt, and {self.delimiter!r} between columns"
            raise self.source.error(f"the only column is {name!r}; set `column: {name!r}` to use it; or write {advice}")

    def _value(self, row: list[str]) -> str | None:
        if row and len(row) != len(self.names):
            if len(row) > len(self.names):
                advice = f"a value that contains {self.delimiter!r} needs quotes"
            else:
                advice = "every column needs a value, which may be empty"
            raise ValueError(f"{len(row)} values under {len(self.names)} columns; {advice}")
        return row[self.column] if row else None


class _Rows:
    """The records of a file, the header first.

    Attributes:
        end: position of the first byte after the record that was read last.
        line: number of that record's last line, counted from 1.
    """

    def __init__(self, source: Source, delimiter: str):
        self.source, self.end, self.line = source, source.begin(), 0
        self.rows = csv.reader(self._lines(), delimiter=delimiter, strict=True)

    def __iter__(self) -> "_Rows":
        return self

    def __next__(self) -> list[str]:
        first = self.line + 1
        try:
            return next(self.rows)
        except csv.Error as error:
            raise self.source.error(f"line {first}: not CSV ({error}); is a quote not closed?") from error

    def _lines(self) -> Iterator[str]:
        """The lines, counted one by one: the parser takes no more of them than the next record needs."""
        for piece in self.source.pieces(self.end):
            for line in io.BytesIO(piece):
                try:
                    text = line.decode()
                except UnicodeDecodeError as error:
                    raise not_utf8(self.source, self.end, error) from error
                self.end, self.line = self.end + len(line), self.line + 1
                yield text
