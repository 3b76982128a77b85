"""Files of network weights: where torch hub keeps them, their download, and reading them without unpickling objects."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line, reason


class WeightsFile(NamedTuple):
    """A file of published weights.

    title: what messages call them.  name: the file in torch hub's folder of checkpoints, where it is downloaded to.
    url: where it is published.  sha256: of its bytes, hexadecimal; None: not published.
    """

    title: str
    name: str
    url: str
    sha256: str | None = None

    @property
    def path(self) -> Path:
        """Where torch hub keeps the file."""
        return Path(torch.hub.get_dir()) / "checkpoints" / self.name

    def missing(self) -> list[str]:
        """One line if torch hub's folder lacks the file, else none; nothing is downloaded."""
        return [] if self.path.is_file() else [f"{self.path}: the weights of {self.title}, published at {self.url}"]

    def find(self, given: Path | None) -> Path:
        """The file that the user names, or the one in torch hub's folder, downloaded if it is missing.

        Raises:
            UserError: it is missing and cannot be downloaded.
        """
        if given is not None:
            return Path(given)
        if not self.path.is_file():
            self._download()
        return self.path

    def _download(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            prefix = None if self.sha256 is None else self.sha256[:8]
            torch.hub.download_url_to_file(self.url, str(self.path), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{self.path}: the weights of {self.title} are missing and cannot be downloaded ({first_line(error)}); "
                f"fetch {self.url} elsewhere and put it there, or leave the metrics that need them out of the "
                "protocol's `metrics`"
            ) from error

    def read(self, file: Path) -> bytes:
        """The bytes of a file with such weights; raises UserError if it cannot be read."""
        try:
            return file.read_bytes()
        except OSError as error:
            raise UserError(f"{file}: the weights of {self.title} cannot be read ({reason(error)})") from error

    def error(self, file: Path, problem: Exception) -> UserError:
        """What a file is told by that holds something else."""
        return UserError(
            f"{file}: holds no weights of {self.title} ({first_line(problem)}); remove it to download it again"
        )


def sha256_of(data: bytes) -> str:
    """SHA-256 of bytes: 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def require_tensors(state: object) -> dict[str, Tensor]:
    """A loaded state dictionary; raises TypeError if it is none."""
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise TypeError("not a dictionary of tensors")
    return state
