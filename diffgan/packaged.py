"""The configurations that are part of the package: `configs/` of a checkout; in a wheel its copy `diffgan/_configs`."""

from collections.abc import Iterator
from pathlib import Path

PREFIX = "configs"  # what paths into the package begin with
SUFFIXES = (".yaml", ".yml")


def packaged_configs() -> Path:
    """The folder of the package's configurations."""
    own = Path(__file__).parent / "_configs"
    return own if own.is_dir() else Path(__file__).parents[1] / PREFIX


def find_file(name: str | Path) -> str:
    """The file that a path names: a local one, or else the package's, if the path begins with `configs/`.

    Any other name is returned unchanged, URLs included.
    """
    first, *rest = Path(name).parts or ("",)
    if first != PREFIX or ".." in rest or Path(name).exists():
        return str(name)
    packaged = packaged_configs().joinpath(*rest)
    return str(packaged) if packaged.is_file() else str(name)


def find_config(name: str | Path) -> str:
    """The configuration file that a name stands for; `configs/` and `.yaml` may be omitted.

    A local file comes before one of the package. A name that stands for none is returned unchanged.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return str(name)
    names = (path,) if path.suffix in SUFFIXES else (path, Path(f"{path}.yaml"))
    for candidate in (*names, *(PREFIX / other for other in names)):
        if (found := Path(find_file(candidate))).is_file():
            return str(found)
    return str(name)


def config_files(folder: Path) -> Iterator[Path]:
    """The configurations in a folder of them, relative to it: without records and the tables of README files."""
    for file in sorted(folder.rglob("*")):
        below = file.relative_to(folder)
        if file.suffix in (*SUFFIXES, ".txt", ".md") and not {"results", "readme"} & set(below.parts):
            yield below
