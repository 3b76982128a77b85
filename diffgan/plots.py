"""Plots of curves as PNG files."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curve = list[tuple[float, float]]  # points (x, y)


def save_curves(path: Path, curves: dict[str, Curve], x: str, y: str, logarithmic: bool = True) -> None:
    """Write a PNG with named curves in one plot.

    Args:
        path: the PNG; its folder is created if needed.
        curves: name -> points (x, y).
        x, y: labels of the axes.
        logarithmic: whether the y axis has a logarithmic scale.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots(), curves, x, y, logarithmic)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw(axes: Axes, curves: dict[str, Curve], x: str, y: str, logarithmic: bool = False) -> None:
    """Draw named curves into `axes`; the other arguments are those of `save_curves`."""
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel=x, ylabel=y, yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
