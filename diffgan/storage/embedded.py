"""Files that are part of the package."""

from importlib.resources import files
from pathlib import Path

EMBEDDED = "glyphs"  # given in place of a path, it names the embedded file or folder


def embedded(name: str) -> Path:
    """Path of an embedded file or folder of the glyph miniature, by its name in `diffgan/glyphs/weights`."""
    return Path(str(files("diffgan.glyphs").joinpath("weights", name)))
