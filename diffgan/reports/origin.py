"""What made a result: the command line, the version and the commit of the package."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffgan.reports.comparison import Origin

SOURCES = Path(__file__).parents[2]  # the repository, if the package is not installed as a copy


def origin() -> Origin:
    """The origin of what this process writes now."""
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return Origin(command_line(sys.argv), package_version(), commit(SOURCES), written)


def command_line(words: list[str]) -> str:
    """A command as it can be repeated in the same folder; paths below it are relative.

    words: as in `sys.argv`.
    """
    program = Path(words[0]).name
    program = "diffgan" if program == "__main__.py" else program
    return shlex.join([program, *(_without_folder(word) for word in words[1:])])


def relative(path: str) -> str:
    """A path without the current folder; URLs and names stay as they are."""
    return path.removeprefix(f"{Path.cwd()}/")


def _without_folder(word: str) -> str:
    """A word, or an option with its value, whose path is relative."""
    option, equals, value = word.partition("=")
    return f"{option}{equals}{relative(value)}" if equals else relative(word)


def package_version() -> str:
    """The version of the installed package."""
    try:
        return version("diffgan")
    except PackageNotFoundError:
        return "not installed"


def commit(folder: Path) -> str | None:
    """The commit of the git repository `folder`, with "-dirty" if tracked files have changed; None if it is none."""
    if not (folder / ".git").exists():  # a folder inside another repository is not that one
        return None
    words = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
