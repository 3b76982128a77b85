"""Where results go, checked before the work that makes them."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from diffgan.errors import UserError, reason


def require_name(name: str, place: str | Path) -> None:
    """Raises UserError if a path or URL is empty: it would mean the current folder.

    name: of the option or argument, for the message.
    """
    if not str(place).strip():
        raise UserError(f"{name}: is empty; name a folder")


def require_file_place(file: Path, suffixes: Sequence[str] = ()) -> None:
    """Check that a file can be written at a path, without changing what is there.

    Args:
        file: an existing file would be replaced, missing folders created.
        suffixes: what its name may end with; anything by default.

    Raises:
        UserError: it is a folder, has another suffix, or the system does not let this process write there.
    """
    if file.is_dir():
        raise UserError(f"{file}: is a folder; name a file")
    if suffixes and file.suffix.lower() not in suffixes:
        raise UserError(f"{file}: must end with {' or '.join(suffixes)}")
    _require_writable(file, file.parent)


def require_folder_place(folder: Path) -> None:
    """Check that files can be written into a folder, which is created later if it is missing.

    Raises:
        UserError: it is a file, or the system does not let this process write there.
    """
    _require_writable(folder, folder)


def _require_writable(output: Path, folder: Path) -> None:
    """Try a temporary file in `folder`, or in the nearest one above it that exists."""
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if os.path.lexists(each))
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        place = "" if existing == output else f"{existing}: "
        raise UserError(f"{output}: cannot be written ({place}{reason(error)}); choose another output") from error
