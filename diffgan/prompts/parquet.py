"""Parquet: one column of text, a row group at a time."""

from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from diffgan.prompts.reader import Block, Reader, choose_column
from diffgan.prompts.source import Source

ROWS = 1024  # of a block


class ParquetReader(Reader):
    """The values of one column; null is none. A position is the number of a row.

    One row group of the column is in memory, as Arrow holds it; of a remote file nothing else is fetched.
    """

    start = 0

    def __init__(self, source: Source, column: str | None):
        self.source, self.held, self.rows = source, None, pa.chunked_array([], pa.string())
        with source.explained():
            self.file = pq.ParquetFile(source.file)
            schema = self.file.schema_arrow
        self.column = choose_column(source, column, schema.names)
        if not _is_text(kind := schema.field(self.column).type):
            raise source.refuse(f"column {self.column!r} holds {kind}, not text; set `column` to another one")
        sizes = (self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups))
        self.starts = [0, *accumulate(sizes)]  # first row of every row group, and the number of rows

    def scan(self) -> Iterator[Block]:
        for group, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            for begin in range(start, stop, ROWS):
                end = min(begin + ROWS, stop)
                try:
                    yield Block(end, self._values(group, begin, end))
                except UnicodeDecodeError as error:
                    raise self.source.refuse(f"rows {begin} to {end - 1}: {self.column!r} is not UTF-8") from error

    def read(self, begin: int, end: int) -> list[str | None]:
        group = next(i for i, stop in enumerate(self.starts[1:]) if begin < stop)
        return self._values(group, begin, end)

    def _values(self, group: int, begin: int, end: int) -> list[str | None]:
        """The values of rows [begin, end), which lie in one row group."""
        if self.held != group:
            with self.source.explained():
                table = self.file.read_row_group(
                    group, columns=[self.column]
                )  # of "s.t", the field t of a struct s too
            self.rows = table.column(self.column)
            self.held = group
        start = self.starts[group]
        return self.rows.slice(begin - start, end - begin).to_pylist()


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
