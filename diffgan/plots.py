"""Plots of curves."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curve = list[tuple[float, float]]


def save_curves(path: Path, curves: dict[str, Curve], x: str, y: str, logarithmic: bool = True) -> None:
    """Write a PNG of named curves.

    Args:
        path: the PNG; its folder is made.
        curves: name -> points (x, y).
        x, y: what the axes show.
        logarithmic: the scale of y.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots(), curves, x, y, logarithmic)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def draw(axes: Axes, curves: dict[str, Curve], x: str, y: str, logarithmic: bool = False) -> None:
    """Named curves on one pair of axes."""
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel=x, ylabel=y, yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend()
