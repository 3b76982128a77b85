"""Blocks of a Markdown file that are written from records, between two comments.

    <!-- table: configs/tables/readme/demo.yaml -->
    ...
    <!-- end of table -->

A table is named by a file that lists its rows, or by the table file of a sweep and a scale. A chart names the metric
and the PNG too, relative to the Markdown file: `<!-- bars: FILE [SCALE] METRIC PNG -->`, or `curves` for the metric
against images. Comments inside fenced code are text.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffgan.errors import UserError

START = re.compile(r"<!-- (table|bars|curves): (.*?) *-->")
END = re.compile(r"<!-- end of (table|bars|curves) -->")


class Block(NamedTuple):
    """A block of a Markdown file.

    file: the Markdown file.  line: number of its first comment, from 1.  kind: "table", "bars" or "curves".
    words: what the first comment names.  text: the lines between the two comments.
    """

    file: Path
    line: int
    kind: str
    words: tuple[str, ...]
    text: tuple[str, ...]

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.file}, line {self.line}"


def find_blocks(file: Path, lines: list[str]) -> list[Block]:
    """The blocks of a file in their order; raises UserError if a block does not end or ends without a start."""
    blocks: list[Block] = []
    start: int | None = None
    for number, line in _outside_code(lines):
        begins, ends = START.fullmatch(line.strip()), END.fullmatch(line.strip())
        if begins and start is not None:
            raise _open_block(file, start, lines)
        if begins:
            start = number
        elif ends and start is None:
            raise UserError(f"{file}, line {number + 1}: {line.strip()} has no start above it")
        elif ends:
            kind, words = START.fullmatch(lines[start].strip()).groups()
            if ends[1] != kind:
                raise _open_block(file, start, lines)
            blocks.append(Block(file, start + 1, kind, tuple(words.split()), tuple(lines[start + 1 : number])))
            start = None
    if start is not None:
        raise _open_block(file, start, lines)
    return blocks


def replaced(lines: list[str], blocks: list[Block], texts: list[list[str]]) -> list[str]:
    """The lines of a file with other texts in its blocks, which `find_blocks` gave for these lines."""
    result, position = [], 0
    for block, text in zip(blocks, texts, strict=True):
        result += [*lines[position : block.line], *text]
        position = block.line + len(block.text)
    return result + lines[position:]


def _outside_code(lines: list[str]) -> Iterator[tuple[int, str]]:
    """The lines that are not inside fenced code, with their numbers from 0."""
    fenced = False
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced:
            yield number, line


def _open_block(file: Path, start: int, lines: list[str]) -> UserError:
    kind = START.fullmatch(lines[start].strip())[1]
    return UserError(f"{file}, line {start + 1}: {lines[start].strip()} has no <!-- end of {kind} --> after it")
