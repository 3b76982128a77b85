"""The real images of a protocol: their features, computed once and kept between runs."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.grain import REAL_SEED, View
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.work_split import WorkSplit
from diffgan.storage.tensor_files import write_tensors
from diffgan.storage.tensor_headers import read_tensors_header


class RealImages(ABC):
    """What metrics compare generated images with: named sets of real images, "reference" the first.

    All methods are collective: every process calls them, and each may compute its part of the features.
    """

    @abstractmethod
    def features(self, name: str, view: View, extractor: str | None = None) -> Tensor:
        """Features of a set as seen in a view: (N, D), or (P, k, D) of k images of each of P prompts; float32.

        Args:
            name: of the set.
            view: how the extractor gets the images.
            extractor: its name; by default the evaluator's own.
        """

    def statistics(self, name: str, view: View, extractor: str | None = None) -> FeatureStatistics:
        """The Gaussian of a set's features; arguments as of `features`."""
        return FeatureStatistics.of(self.features(name, view, extractor))

    def images(self, name: str) -> Tensor:
        """A set's images: (N, 3, H, W) uint8."""
        raise NotImplementedError(f"{type(self).__name__} keeps no images")

    def captions(self, name: str) -> list[str]:
        """The captions of a set's images."""
        raise NotImplementedError(f"{type(self).__name__} has no captions")


def cache_file(
    folder: Path | None, kind: str, protocol: str, digest: str, extractor: FeatureExtractor, view: View
) -> Path | None:
    """The file of a set's features: its name holds the protocol and a hash of digest, extractor and view.

    Args:
        folder: the cache; None: there is no file.
        kind: what the file holds; its name begins with it.
        protocol: its name.
        digest: of everything that decides on the images.
        extractor, view: what the features are of.
    """
    if folder is None:
        return None
    grain = f" {view.grain} {REAL_SEED}" if view.grain else ""
    patch = f" patch {view.patch}" if view.patch else ""
    key = hashlib.blake2b(f"{digest} {extractor.identity}{grain}{patch}".encode(), digest_size=6)
    return folder / f"{kind}-{protocol}-{key.hexdigest()}.safetensors"


def cached_tensors(file: Path | None, compute: Callable[[], dict[str, Tensor]], split: WorkSplit) -> dict[str, Tensor]:
    """The tensors of a file; if a process lacks it they are computed, and the first process writes it (collective).

    A file that is damaged is written again.
    """
    if split.agree(file is not None and _is_intact(file)):
        return load_file(file)
    tensors = compute()
    if file is not None and split.rank == 0:
        write_tensors(file, tensors)
    return tensors


def _is_intact(file: Path) -> bool:
    try:
        return bool(read_tensors_header(file).tensors)
    except (OSError, ValueError):
        return False
