"""Weight files by name: a file, a folder that holds one, or a repository on the hub."""

import re
from pathlib import Path

from diffgan.errors import UserError, first_line
from diffgan.perceptual.weights import SHIPPED

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")  # owner/name
SUFFIX = ".safetensors"


def pretrained_weights(name: str | Path, revision: str | None = None) -> Path:
    """The weight file that a name stands for.

    Args:
        name: a file; a folder, or "owner/name" on the hub, with one .safetensors file, those in subfolders not
            counted; or a name of `SHIPPED`.
        revision: branch, tag or commit of the repository.

    Raises:
        UserError: there is no such file, folder or repository, or it holds no weight file or several; the hub cannot
            be reached and the repository is not in its cache.
    """
    path = Path(name)
    if str(name) in SHIPPED or path.is_file():
        return path
    if path.is_dir():
        return _only_file(path, str(name))
    if not HUB_ID.fullmatch(str(name)):
        raise UserError(f"{name}: no such file or folder; name weights of LatentLPIPS, or owner/name on the hub")
    return _only_file(_downloaded(str(name), revision), str(name))


def _downloaded(repository: str, revision: str | None) -> Path:
    """The folder of a repository's weight files in the hub's cache."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(f"{repository}: no such file; from the hub it requires pip install huggingface_hub") from error
    try:
        folder = snapshot_download(repository, revision=revision, allow_patterns=f"*{SUFFIX}", ignore_patterns="*/*")
    except (OSError, ValueError) as error:
        place = f"{repository}, revision {revision}," if revision else repository
        raise UserError(
            f"{repository}: no such file or folder, and {place} is neither in the hub's cache nor could it be "
            f"downloaded ({first_line(error).rstrip('.')})"
        ) from error
    return Path(folder)


def _only_file(folder: Path, name: str) -> Path:
    files = sorted(folder.glob(f"*{SUFFIX}"))
    if len(files) != 1:
        found = f"{len(files)} of them: {', '.join(file.name for file in files)}" if files else "none"
        raise UserError(f"{name}: expected one {SUFFIX} file with weights of LatentLPIPS, found {found}")
    return files[0]
