"""Plots of curves, bars and ranges as PNG files."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from types import MappingProxyType
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

Curve = list[tuple[float, float]]  # points (x, y)

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito: for colour-blind eyes too
INK = "#333333"
LETTER = 0.085  # inches that a letter of a label takes, about
LEAST_BAR = 3.0  # inches of the longest bar of a chart, at least


class Interval(NamedTuple):
    """A mean with the lowest and the highest value.

    name: of the bar or curve it belongs to.  images: its place on the axis of images, if there is one.
    text: the value as it is written beside it.
    """

    name: str
    images: float | None
    mean: float
    least: float
    most: float
    text: str


def curves_png(curves: dict[str, Curve], x: str, y: str, logarithmic: bool = True) -> bytes:
    """A PNG with named curves in one plot.

    Args:
        curves: name -> points (x, y).
        x, y: labels of the axes.
        logarithmic: whether the y axis has a logarithmic scale.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    draw(figure.subplots(), curves, x, y, logarithmic)
    return png(figure, dpi=120)


def draw(axes: Axes, curves: dict[str, Curve], x: str, y: str, logarithmic: bool = False) -> None:
    """Draw named curves into `axes`; the other arguments are those of `curves_png`."""
    for name, points in curves.items():
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set(xlabel=x, ylabel=y, yscale="log" if logarithmic else "linear")
    axes.grid(alpha=0.3)
    axes.legend()


def bars_png(bars: Sequence[Interval], axis: str, texts: Mapping[str, str]) -> bytes:
    """A PNG with a horizontal bar for each mean, its range as a line, and its value.

    Args:
        bars: from top to bottom.
        axis: label of the axis.
        texts: stored in the file by keyword.
    """
    names, values = (LETTER * max(map(len, column)) for column in ([b.name for b in bars], [b.text for b in bars]))
    width = max(7, names + values + LEAST_BAR)
    figure = Figure(figsize=(width, 0.8 + 0.42 * len(bars)), layout="constrained")
    axes = figure.subplots()
    means, ranges = [bar.mean for bar in bars], _ranges(bars)
    style = {"ecolor": INK, "capsize": 3, "linewidth": 0}
    axes.barh(range(len(bars)), means, height=0.6, color=COLOURS[0], xerr=ranges, error_kw={"elinewidth": 1.2}, **style)
    farthest = max(0, *(bar.most for bar in bars))
    for place, bar in enumerate(bars):
        axes.text(max(bar.most, 0) + 0.015 * farthest, place, bar.text, va="center", color=INK, fontsize=9)
    axes.set_yticks(range(len(bars)), [bar.name for bar in bars])
    axes.set(xlabel=axis, ylim=(len(bars) - 0.5, -0.5))
    axes.set_xlim(right=farthest / (1 - values / (width - names)) or None)  # the longest bar ends before its value
    axes.tick_params(axis="y", length=0)
    _remove_frame(axes, "top", "right", "left")
    return png(figure, 110, texts)


def intervals_png(points: Sequence[Interval], axis: str, texts: Mapping[str, str]) -> bytes:
    """A PNG with means against images, points of one name joined by a line, each with its range and value.

    The arguments are those of `bars_png`; the axis of images is logarithmic.
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(dict.fromkeys(point.name for point in points)):
        curve = sorted((point for point in points if point.name == name), key=lambda point: point.images)
        colour, xs = COLOURS[number % len(COLOURS)], [point.images for point in curve]
        means = [point.mean for point in curve]
        axes.errorbar(xs, means, yerr=_ranges(curve), color=colour, marker="o", markersize=5, capsize=3, label=name)
        for point in curve:
            place = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            axes.annotate(point.text.split(" (")[0], (point.images, point.most), fontsize=9, color=colour, **place)
    axes.set(xlabel="images", ylabel=axis, xscale="log")
    axes.set_xticks(sorted({point.images for point in points}))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.minorticks_off()
    axes.margins(x=0.12, y=0.2)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    _remove_frame(axes, "top", "right")
    return png(figure, 110, texts)


def ranges_png(curves: Mapping[str, Sequence[Interval]], x: str, y: str) -> bytes:
    """A PNG with the mean of each curve as a line and its range as a band.

    Args:
        curves: name -> points in the order of their images.
        x, y: labels of the axes.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, (name, points) in enumerate(curves.items()):
        colour, xs = COLOURS[number % len(COLOURS)], [point.images for point in points]
        marker = "o" if len(points) < 30 else ""
        axes.plot(xs, [point.mean for point in points], color=colour, marker=marker, markersize=3, label=name)
        least, most = [point.least for point in points], [point.most for point in points]
        axes.fill_between(xs, least, most, color=colour, alpha=0.2, linewidth=0)
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _remove_frame(axes, "top", "right")
    return png(figure, dpi=120)


def _ranges(intervals: Sequence[Interval]) -> tuple[list[float], list[float]]:
    """How far the ranges reach below and above the means, as matplotlib takes them."""
    below = [max(0.0, interval.mean - interval.least) for interval in intervals]
    above = [max(0.0, interval.most - interval.mean) for interval in intervals]
    return below, above


def _remove_frame(axes: Axes, *sides: str) -> None:
    for side in sides:
        axes.spines[side].set_visible(False)


def png(figure: Figure, dpi: int, texts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """A figure as a PNG that holds texts, but not the version of matplotlib."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None, **texts})
    return buffer.getvalue()
