"""The verbs `configs list` and `configs copy`: the configurations of the package."""

import os
import shutil
import textwrap
from itertools import takewhile
from pathlib import Path

from diffgan.cli.verbs import nearest
from diffgan.errors import UserError
from diffgan.packaged import SUFFIXES, config_files, packaged_configs
from diffgan.storage.folders import replace_folder

COMMENT_WIDTH = 80  # characters


def list_configs() -> None:
    """List the configurations of the package, each with the first line of its comment: `-c NAME` uses one."""
    root = packaged_configs()
    names = {str(file.with_suffix("")): _comment(root / file) for file in config_files(root) if file.suffix in SUFFIXES}
    width = max(map(len, names))
    print("\n".join(f"{name:<{width}}  {comment}".rstrip() for name, comment in names.items()))


def copy(name: str, folder: Path) -> None:
    """Copy a folder of the package's configurations, to be edited.

    Args:
        name: of the folder, e.g. glyphs.
        folder: the copy, which must not exist.
    """
    source = packaged_configs() / name.removeprefix("configs/")
    if ".." in Path(name).parts or not source.is_dir():
        known = [path.name for path in sorted(packaged_configs().iterdir()) if path.is_dir()]
        offer = f"did you mean {similar}?" if (similar := nearest(name, known)) else f"known: {', '.join(known)}"
        raise UserError(f"configs copy: {name} is no folder of configurations; {offer}")
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists, and nothing is overwritten; name another folder")
    files = list(config_files(source))
    with replace_folder(folder, record="") as copied:
        for file in files:
            (copied / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / file, copied / file)
    print(f"{folder}: {len(files)} files")


def _comment(file: Path) -> str:
    """The first sentence of the comment that a file begins with."""
    comment = " ".join(line[1:].strip() for line in takewhile(_is_comment, file.read_text().splitlines()))
    return textwrap.shorten(comment.partition(". ")[0].rstrip("."), COMMENT_WIDTH, placeholder=" ...")


def _is_comment(line: str) -> bool:
    return line.startswith("#")
