"""Files that are there in whole or not at all, and the folders of what ships with the package."""

import contextlib
import os
from importlib.resources import files
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from diffgan.errors import UserError

PARTIAL = ".partial"
EMBEDDED = "glyphs"  # what a path may say instead of a place, for what ships with the package


def embedded(name: str) -> Path:
    """A file or folder that ships with the glyph miniature, by its name under `diffgan/glyphs/weights`."""
    return Path(str(files("diffgan.glyphs").joinpath("weights", name)))


def write_whole(file: Path, data: bytes) -> None:
    """Write a file that is there in whole or not at all, after a crash too; its folder is made.

    Raises:
        UserError: the system refuses (disk full, no permission); nothing is left behind.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}{PARTIAL}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as target:
            target.write(data)
            target.flush()
            os.fsync(target.fileno())
        os.replace(partial, file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"{file}: cannot be written: {error.strerror}; mend it and run the same command") from error


def write_tensors(file: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> None:
    """Write tensors and a header of strings as safetensors, whole or not at all; errors as `write_whole`."""
    write_whole(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, header))
