"""A prompt file: counted and digested in one pass when it is opened, read by number from then on."""

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
    """`len` prompts, of which a few thousand are in memory at any time (of Parquet: one row group).

    Space around a prompt is cut off. Prompts that are blank then, and values that are not there, are left out and do
    not count; equal prompts stay. In tables and JSON lines a prompt may hold line feeds.

    Args:
        source: path or URL, .txt, .jsonl, .csv, .tsv or .parquet, all but the last also packed (.gz, .bz2, .xz, .zip).
        column: holds the prompts; by default the only one named prompt, caption or text, or (not of tables) the only
            one there is.

    Attributes:
        digest: of the prompts in their order, whatever the format.
        blank: how many were left out.

    Raises:
        UserError: the file cannot be read, is no UTF-8, is malformed (named with its line), or holds no prompt; or
            which column holds the prompts is not clear.
    """

    def __init__(self, source: str | Path, column: str | None = None):
        self.source = Source(str(source))
        self.reader = _reader(self.source, column)
        self.counts, self.ends = array("q", [0]), array("q", [self.reader.start])  # prompts before, position of a block
        self.blank, self.digest = 0, ""
        self._scan()
        self.held = (-1, [])
        if not len(self):
            raise self.source.refuse("no prompt in it; write one prompt a line, or name another `column`")

    def __len__(self) -> int:
        return self.counts[-1]

    def read(self, numbers: range) -> list[str]:
        """The prompts of consecutive numbers, 0 <= number < len.

        Raises:
            UserError: the file cannot be read any more, or is not the one that was opened.
        """
        if not 0 <= numbers.start <= numbers.stop <= len(self) or numbers.step != 1:
            raise IndexError(f"{numbers} of {len(self)} prompts")
        prompts, first = [], bisect_right(self.counts, numbers.start) - 1
        block = first
        while self.counts[first] + len(prompts) < numbers.stop:
            prompts += self._block(block)
            block += 1
        return prompts[numbers.start - self.counts[first] : numbers.stop - self.counts[first]]

    def _scan(self) -> None:
        digest = blake2b(digest_size=16)
        for block in self.reader.scan():
            prompts = _prompts(block.values)
            if prompts:
                digest.update(self._digested(prompts, first=not len(self)))
            self.blank += len(block.values) - len(prompts)
            self.counts.append(len(self) + len(prompts))
            self.ends.append(block.end)
        self.digest = digest.hexdigest()

    def _digested(self, prompts: list[str], first: bool) -> bytes:
        """Prompts joined by line feeds; those within a prompt are doubled, so no two lists give the same bytes."""
        text = "\n".join(prompt.replace("\n", "\n\n") for prompt in prompts)
        try:
            return (text if first else "\n" + text).encode()
        except UnicodeEncodeError as error:
            broken = next(prompt for prompt in prompts if not _encodes(prompt))
            raise self.source.refuse(f"prompt {broken!r} holds half of a surrogate pair") from error

    def _block(self, block: int) -> list[str]:
        if self.held[0] != block:
            self.held = (block, self._read_block(block))
        return self.held[1]

    def _read_block(self, block: int) -> list[str]:
        try:
            prompts = _prompts(self.reader.read(self.ends[block], self.ends[block + 1]))
        except UserError:
            raise
        except ValueError:
            prompts = []
        if len(prompts) != self.counts[block + 1] - self.counts[block]:
            raise self.source.refuse("was changed while it was in use; run the command again with the former file")
        return prompts


def _reader(source: Source, column: str | None) -> Reader:
    if source.suffix == ".txt":
        if column is not None:
            raise source.refuse(f"a text file has no column {column!r}; leave `column` out")
        return TextReader(source)
    if source.suffix in (".jsonl", ".ndjson"):
        return JsonLinesReader(source, column)
    if source.suffix in (".csv", ".tsv"):
        return TableReader(source, column, delimiter="," if source.suffix == ".csv" else "\t")
    if source.suffix == ".parquet":
        if source.packed:
            raise source.refuse("Parquet packs its columns itself; unpack the file")
        return ParquetReader(source, column)
    raise source.refuse(f"format {source.suffix!r} is not known; name a file that ends in {FORMATS}")


def _prompts(values: list[str | None]) -> list[str]:
    return [stripped for value in values if value and (stripped := value.strip())]


def _encodes(prompt: str) -> bool:
    try:
        prompt.encode()
    except UnicodeEncodeError:
        return False
    return True
