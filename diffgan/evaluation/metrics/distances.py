"""Distances between two sets of images, given as features: Fréchet and kernel, in float64."""

import numpy as np
import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.features.base import FID_FEATURES
from diffgan.evaluation.grain import PLAIN, View
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.real_images import RealImages

KID_SUBSETS, KID_SUBSET_SIZE, KID_SEED = 50, 250, 0
EXTRACTOR_TITLES = {"efficientnet": "EfficientNet"}


class FeatureDistance(ImageMetric):
    """A distance between the features of generated and of real images.

    Args:
        extractor: name of the features; the metric's key carries it.
        view: how the extractor gets the images.
        selected: the protocol's rows that count.
        reference: name of the set of real images.
        floor: another set of real images, whose distance from the reference is what a perfect generator would reach
            with as many images; None: without that value.
    """

    prefix: str

    def __init__(
        self,
        extractor: str,
        view: View = PLAIN,
        selected: slice = ALL,
        reference: str = "reference",
        floor: str | None = None,
    ):
        super().__init__(selected)
        self.extractor, self.view = extractor, view
        self.reference_name, self.floor_name = reference, floor
        self.floor: dict[str, float] = {}

    @property
    def name(self) -> str:
        """The key of the distance, e.g. "kid_efficientnet_grain"."""
        return f"{self.prefix}_{self.extractor}{self.view.suffix}"

    @property
    def floor_key(self) -> str:
        """The key of the floor."""
        return f"{self.name}_floor"

    def measure(self, batch: ImageBatch) -> Tensor:
        return batch.features(self.view)

    def titled(self, title: str) -> str:
        """A heading with the view's name."""
        return f"{title}, {self.view.name}" if self.view.name else title


class FrechetDistance(FeatureDistance):
    """`frechet_distance` of the features; with the features of FID's Inception it is FID.

    Keys: fid, or fd_<extractor> of any other extractor, and `..._floor`.
    """

    prefix = "fd"

    @property
    def name(self) -> str:
        """The key of the distance: only that of FID's own features is called "fid"."""
        return f"fid{self.view.suffix}" if self.extractor == FID_FEATURES else super().name

    @property
    def columns(self) -> tuple[Column, ...]:
        if self.extractor == FID_FEATURES:
            return (Column(self.name, self.titled("FID"), 2, real_key=self.floor_key, better="lower"),)
        title = "FD" if self.view.name else f"FD ({EXTRACTOR_TITLES.get(self.extractor, self.extractor)})"
        return (Column(self.name, self.titled(title), 1, real_key=self.floor_key, better="lower"),)

    def setup(self, real: RealImages) -> None:
        self.reference = real.statistics(self.reference_name, self.view)
        if self.floor_name is not None:
            floor = real.statistics(self.floor_name, self.view)
            self.floor = {self.floor_key: frechet_distance(floor, self.reference)}

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return {self.name: frechet_distance(FeatureStatistics.of(measured), self.reference)} | self.floor


class KernelDistance(FeatureDistance):
    """`kernel_distance` (KID) of the features. Keys: kid_<extractor> and `..._floor`."""

    prefix = "kid"

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.titled("KID x 1000"), 1, scale=1000, real_key=self.floor_key, better="lower"),)

    def setup(self, real: RealImages) -> None:
        self.reference = real.features(self.reference_name, self.view)
        if self.floor_name is not None:
            floor = real.features(self.floor_name, self.view)
            self.floor = {self.floor_key: kernel_distance(floor, self.reference)}

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return {self.name: kernel_distance(measured, self.reference)} | self.floor


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), eq. 6 of Heusel et al., arXiv 1706.08500.

    With C_a = A A^T and C_b = B B^T, C_a C_b has the squared singular values of A^T B as eigenvalues, so the trace of
    its root is their sum: exact for covariances of low rank too, where the root of a general matrix is not.
    """
    shared = torch.linalg.svdvals(a.root.T @ b.root).sum()
    distance = (a.mean - b.mean).square().sum() + a.root.square().sum() + b.root.square().sum() - 2 * shared
    return distance.clamp_min(0).item()


def polynomial_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared MMD of features (N, D) and (M, D) under k(a, b) = (a.b / D + 1)^3: () float64."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def mean_off_diagonal(gram: Tensor) -> Tensor:
        return (gram.sum() - gram.trace()) / (len(gram) * (len(gram) - 1))

    x, y = x.double(), y.double()
    return mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2 * kernel(x, y).mean()


def kernel_distance(x: Tensor, y: Tensor) -> float:
    """KID: mean of `polynomial_mmd` over 50 random subsets of 250 (fewer if a set is smaller), Binkowski et al. 2018.

    Unbiased, so it can be slightly negative; unlike the Fréchet distance it does not depend on the number of images.
    """
    size, draw = min(KID_SUBSET_SIZE, len(x), len(y)), np.random.Generator(np.random.Philox(KID_SEED))
    if size < 2:
        raise UserError(f"a kernel distance needs two or more images a set, there are {len(x)} and {len(y)}")
    distances = []
    for _ in range(KID_SUBSETS):
        i, j = (draw.choice(len(features), size, replace=False) for features in (x, y))
        distances.append(polynomial_mmd(x[i], y[j]))
    return torch.stack(distances).mean().item()
