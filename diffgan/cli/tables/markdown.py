"""A table as Markdown."""

from diffgan.cli.tables.grid import Grid, Measured, best_row


def markdown(grid: Grid) -> list[str]:
    """The lines of a table and of its note."""
    best = [best_row(grid, column) for column in range(len(grid.columns))]
    lines = [_line([grid.title, *(column.heading for column in grid.columns)])]
    lines.append(_line(["---"] * (len(grid.columns) + 1)))
    for number, row in enumerate(grid.rows):
        cells = []
        for column, cell, bold in zip(grid.columns, row.cells, best, strict=True):
            text = cell.text(column.digits) if isinstance(cell, Measured) else cell
            cells.append(f"**{text}**" if bold == number else text)
        lines.append(_line([row.title, *cells]))
    return [*lines, "", grid.note] if grid.note else lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
