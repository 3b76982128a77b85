"""A prompt file: counted and digested in one pass when it is opened, then read by number."""

from array import array
from bisect import bisect_right
from hashlib import blake2b
from pathlib import Path

from diffgan.errors import UserError
from diffgan.prompts.lines import JsonLinesReader, TextReader
from diffgan.prompts.parquet import ParquetReader
from diffgan.prompts.reader import Reader
from diffgan.prompts.source import Source
from diffgan.prompts.table import TableReader

FORMATS = ".txt, .jsonl, .csv, .tsv or .parquet"


class PromptFile:
    """The prompts of a file by number. One block of a few thousand is in memory at a time (Parquet: one row group).

    White space around a prompt is removed. Blank prompts and missing values are skipped and do not count; repeated
    prompts are kept. In tables and JSON lines a prompt may contain line feeds.

    Args:
        source: path or URL of a .txt, .jsonl, .csv, .tsv or .parquet file; all but Parquet may be compressed (.gz,
            .bz2, .xz, .zip).
        column: contains the prompts. Default: the only column named prompt, caption or text; in JSON lines and Parquet
            also a single column of any name.

    Attributes:
        digest: of the prompts in their order, independent of the format: 32 hexadecimal digits.
        blank: number of blank prompts and missing values that were skipped.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is malformed (the message names the line) or contains no
            prompts; or it is not clear which column to use.
    """

    def __init__(self, source: str | Path, column: str | None = None):
        self.source = Source(str(source))
        self.reader = _reader(self.source, column)
        self.counts = array("q", [0])  # prompts before every block, then of all blocks
        self.ends = array("q", [self.reader.start])  # position where every block begins, then the end of the last
        self.blank, self.digest = 0, ""
        self._scan()
        self.cached_block = (-1, [])  # number of a block, its prompts
        if not len(self):
            raise self.source.error("no prompts in it; write one prompt per line, or name another `column`")

    def __len__(self) -> int:
        return self.counts[-1]

    def read(self, numbers: range) -> list[str]:
        """The prompts with these consecutive numbers, 0 <= number < len(self).

        Raises:
            UserError: the file can no longer be read, or has changed since it was opened.
        """
        if not 0 <= numbers.start <= numbers.stop <= len(self) or numbers.step != 1:
            raise IndexError(f"{numbers} of {len(self)} prompts")
        block = bisect_right(self.counts, numbers.start) - 1
        skipped = self.counts[block]  # prompts of earlier blocks
        prompts = []
        while skipped + len(prompts) < numbers.stop:
            prompts += self._block(block)
            block += 1
        return prompts[numbers.start - skipped : numbers.stop - skipped]

    def _scan(self) -> None:
        """Count and digest all prompts."""
        digest = blake2b(digest_size=16)
        for block in self.reader.scan():
            prompts = _prompts(block.values)
            if prompts:
                digest.update(self._digest_bytes(prompts, first=not len(self)))
            self.blank += len(block.values) - len(prompts)
            self.counts.append(len(self) + len(prompts))
            self.ends.append(block.end)
        self.digest = digest.hexdigest()

    def _digest_bytes(self, prompts: list[str], first: bool) -> bytes:
        """Prompts joined by line feeds; line feeds within prompts are doubled, so different lists differ in bytes."""
        text = "\n".join(prompt.replace("\n", "\n\n") for prompt in prompts)
        try:
            return (text if first else "\n" + text).encode()
        except UnicodeEncodeError as error:
            prompt = next(prompt for prompt in prompts if not _is_encodable(prompt))
            raise self.source.error(f"prompt {prompt!r} holds half of a surrogate pair") from error

    def _block(self, block: int) -> list[str]:
        if self.cached_block[0] != block:
            self.cached_block = (block, self._read_block(block))
        return self.cached_block[1]

    def _read_block(self, block: int) -> list[str]:
        try:
            prompts = _prompts(self.reader.read(self.ends[block], self.ends[block + 1]))
        except UserError:
            raise
        except ValueError:
            prompts = []
        if len(prompts) != self.counts[block + 1] - self.counts[block]:
            raise self.source.error("was changed while it was in use; run the command again with the original file")
        return prompts


def _reader(source: Source, column: str | None) -> Reader:
    """The reader for the file's format."""
    if source.suffix == ".txt":
        if column is not None:
            raise source.error(f"a text file has no column {column!r}; omit `column`")
        return TextReader(source)
    if source.suffix in (".jsonl", ".ndjson"):
        return JsonLinesReader(source, column)
    if source.suffix in (".csv", ".tsv"):
        return TableReader(source, column, delimiter="," if source.suffix == ".csv" else "\t")
    if source.suffix == ".parquet":
        if source.compressed:
            raise source.error("Parquet compresses its columns itself; decompress the file")
        return ParquetReader(source, column)
    raise source.error(f"format {source.suffix!r} is not supported; name a file that ends in {FORMATS}")


def _prompts(values: list[str | None]) -> list[str]:
    """Values without the white space around them; blank and missing values are skipped."""
    stripped = (value.strip() for value in values if value)
    return [prompt for prompt in stripped if prompt]


def _is_encodable(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
