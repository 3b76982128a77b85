"""The verb `render`: tables and charts of Markdown files, from the records that their comments name."""

from pathlib import Path
from typing import NamedTuple

from diffgan.cli.sweeps.table_file import SCALES, read_table
from diffgan.cli.tables.blocks import Block, find_blocks, replaced
from diffgan.cli.tables.charts import Chart, chart_of, is_drawn
from diffgan.cli.tables.grid import Grid
from diffgan.cli.tables.listed import listed_grid
from diffgan.cli.tables.markdown import markdown
from diffgan.cli.tables.swept import swept_grid
from diffgan.errors import UserError, reason
from diffgan.storage.atomic import write_atomic

README = "README.md"


class Rendered(NamedTuple):
    """What a block has to hold.  chart: the PNG beside the Markdown file, if the block shows one."""

    block: Block
    text: list[str]
    chart: Chart | None

    @property
    def is_current(self) -> bool:
        return list(self.block.text) == self.text and (self.chart is None or is_drawn(self.chart))


class Page(NamedTuple):
    """A Markdown file and its blocks."""

    file: Path
    lines: list[str]
    blocks: list[Rendered]


def render(files: list[Path], check: bool = False) -> None:
    """Write the tables and charts of Markdown files anew from their records; nothing is written if one fails.

    Args:
        files: Markdown files; a folder stands for every README.md in it and below.
        check: write nothing, and fail if a table or chart differs from what its records render.
    """
    pages = [_page(file) for file in _markdown_files(files)]
    changed = [rendered for page in pages for rendered in page.blocks if not rendered.is_current]
    if check and changed:
        block, more = changed[0].block, len(changed) - 1
        others = f" (and {more} more)" if more else ""
        source = f"{block.kind} {' '.join(block.words)}"
        raise UserError(f"{block.place}: {source} differs from its records{others}; run diffgan render")
    for page in pages:
        _write(page)
    total = sum(len(page.blocks) for page in pages)
    print(f"{total} tables and charts in {len(pages)} files, {len(changed)} changed")


def _markdown_files(files: list[Path]) -> list[Path]:
    found: list[Path] = []
    for file in files:
        found += sorted(file.rglob(README)) if file.is_dir() else [file]
    return found


def _page(file: Path) -> Page:
    try:
        lines = file.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({reason(error)})") from error
    return Page(file, lines, [_rendered(block) for block in find_blocks(file, lines)])


def _write(page: Page) -> None:
    """Write what changed, the charts first: a PNG that no page shows is no harm."""
    for rendered in page.blocks:
        if rendered.chart is not None and not is_drawn(rendered.chart):
            rendered.chart.draw()
    if all(rendered.is_current for rendered in page.blocks):
        return
    blocks = [rendered.block for rendered in page.blocks]
    lines = replaced(page.lines, blocks, [rendered.text for rendered in page.blocks])
    write_atomic(page.file, "\n".join(lines).encode())


def _rendered(block: Block) -> Rendered:
    """What a block has to hold; raises UserError with its place."""
    try:
        if block.kind == "table":
            return Rendered(block, markdown(_grid(block.words)), None)
        if len(block.words) < 3:
            raise UserError(f"name a table, a metric and a PNG: <!-- {block.kind}: FILE [SCALE] METRIC PNG -->")
        *source, metric, png = block.words
        chart = chart_of(_grid(tuple(source)), block.kind, metric, block.file.parent / png)
        return Rendered(block, [f"![{chart.title}]({png})"], chart)
    except UserError as error:
        raise UserError(f"{block.place}: {error}") from error


def _grid(words: tuple[str, ...]) -> Grid:
    """The table that a comment names: a file that lists rows, or the table file of a sweep and a scale."""
    if len(words) == 1:
        return listed_grid(Path(words[0]))
    if len(words) == 2 and words[1] in SCALES:
        table, scale = read_table(Path(words[0])), words[1]
        return swept_grid(table, scale, table.committed(scale))
    raise UserError(f"{' '.join(words)!r}: name a file in configs/tables/readme, or a table file and a scale")
