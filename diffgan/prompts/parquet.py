"""Parquet files: one column of text, one row group at a time."""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from diffgan.prompts.reader import Block, Reader, choose_column
from diffgan.prompts.source import Source

BLOCK_ROWS = 1024


class ParquetReader(Reader):
    """The values of one column; null is a missing value. Positions are row numbers.

    One row group of the column is in memory, as an Arrow array; nothing else of a remote file is fetched.

    Args:
        column: None: chosen by `choose_column`.
    """

    start = 0

    def __init__(self, source: Source, column: str | None):
        self.source = source
        self.loaded_group, self.rows = None, pa.chunked_array([], pa.string())
        with source.user_errors():
            self.file = pq.ParquetFile(source.file)
            schema = self.file.schema_arrow
        self.column = choose_column(source, column, schema.names)
        column_type = schema.field(self.column).type
        if not _is_text(column_type):
            raise source.error(f"column {self.column!r} holds {column_type}, not text; set `column` to another one")
        sizes = (self.file.metadata.row_group(group).num_rows for group in range(self.file.num_row_groups))
        self.starts = [0, *accumulate(sizes)]  # first row of every row group, then the number of rows

    def scan(self) -> Iterator[Block]:
        for group, (start, stop) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            for begin in range(start, stop, BLOCK_ROWS):
                end = min(begin + BLOCK_ROWS, stop)
                try:
                    yield Block(end, self._values(group, begin, end))
                except UnicodeDecodeError as error:
                    raise self.source.error(f"rows {begin} to {end - 1}: {self.column!r} is not UTF-8") from error

    def read(self, begin: int, end: int) -> list[str | None]:
        group = bisect_right(self.starts, begin) - 1
        return self._values(group, begin, end)

    def _values(self, group: int, begin: int, end: int) -> list[str | None]:
        """The values of rows [begin, end), which belong to one row group."""
        if self.loaded_group != group:
            with self.source.user_errors():
                # For a column named "s.t" this also reads the field t of a struct s.
                table = self.file.read_row_group(group, columns=[self.column])
            self.rows = table.column(self.column)
            self.loaded_group = group
        start = self.starts[group]
        return self.rows.slice(begin - start, end - begin).to_pylist()


def _is_text(data_type: pa.DataType) -> bool:
    if pa.types.is_dictionary(data_type):
        data_type = data_type.value_type
    return any(test(data_type) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))
