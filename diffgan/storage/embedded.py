"""Files that ship with the package."""

from importlib.resources import files
from pathlib import Path

EMBEDDED = "glyphs"  # what a path may say instead of a place, for what ships with the package


def embedded(name: str) -> Path:
    """A file or folder that ships with the glyph miniature, by its name under `diffgan/glyphs/weights`."""
    return Path(str(files("diffgan.glyphs").joinpath("weights", name)))
