"""Curves in a page: one SVG for each panel and colour scheme."""

import base64
import io
from typing import NamedTuple

import matplotlib
from matplotlib import style
from matplotlib.figure import Figure

from diffgan.plots import Curve, draw

SIZE = (5.0, 3.2)  # of a figure, in inches
TEXT = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}


class CurveFigure(NamedTuple):
    """A panel of curves.

    title: what it shows.  summary: the curves in words, for those who do not see them.  light, dark: the SVG as a data
    URI, for both colour schemes.
    """

    title: str
    summary: str
    light: str
    dark: str


def curve_figure(title: str, curves: dict[str, Curve], logarithmic: bool) -> CurveFigure:
    """The figure of named curves over images seen."""
    light, dark = (_svg(curves, logarithmic, scheme) for scheme in ("default", "dark_background"))
    return CurveFigure(title, "; ".join(_in_words(name, curve) for name, curve in curves.items()), light, dark)


def _svg(curves: dict[str, Curve], logarithmic: bool, scheme: str) -> str:
    with style.context(scheme), matplotlib.rc_context(TEXT):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.subplots(), curves, "images", "", logarithmic)
        stream = io.BytesIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _in_words(name: str, curve: Curve) -> str:
    (first, start), (last, end) = curve[0], curve[-1]
    return f"{name} from {start:.3g} at {first:,.0f} images to {end:.3g} at {last:,.0f}"
