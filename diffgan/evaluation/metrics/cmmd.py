"""CMMD: the maximum mean discrepancy of CLIP embeddings under a Gaussian kernel."""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgan.evaluation.features.base import CMMD_FEATURES
from diffgan.evaluation.metrics.base import Column
from diffgan.evaluation.metrics.distances import FeatureDistance
from diffgan.evaluation.real_images import RealImages

SIGMA, SCALE = 10.0, 1000.0
BATCH = 2000  # rows of a kernel matrix that is in memory at once


class CMMD(FeatureDistance):
    """`gaussian_mmd` of normalized features of all images, times 1000 (Jayasumana et al., arXiv 2401.09603).

    Key: cmmd with CLIP's features, mmd_<extractor> with others. It is one estimate over all images, as the authors'
    code computes; torch-fidelity averages over subsets, and only over sets of one size.
    """

    prefix = "mmd"
    needs_features = True

    @property
    def name(self) -> str:
        """The key: only that of CLIP's own features is called "cmmd"."""
        return f"cmmd{self.view.suffix}" if self.extractor == CMMD_FEATURES else super().name

    @property
    def columns(self) -> tuple[Column, ...]:
        return (Column(self.name, self.titled("CMMD"), 3, better="lower"),)

    def setup(self, real: RealImages) -> None:
        self.reference = real.features(self.reference_name, self.view, self.extractor)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        x, y = (F.normalize(features.double(), dim=1) for features in (measured, self.reference))
        return {self.name: SCALE * gaussian_mmd(x, y, SIGMA)}


def gaussian_mmd(x: Tensor, y: Tensor, sigma: float) -> float:
    """Squared MMD of features (N, D) and (M, D) under k(a, b) = exp(-|a - b|^2 / (2 sigma^2)).

    The estimate of minimum variance, eq. 5 of Gretton et al. 2012: pairs of an image with itself count, so it is not
    negative. Computed in float64.
    """
    x, y = x.double(), y.double()
    return _mean_kernel(x, x, sigma) + _mean_kernel(y, y, sigma) - 2 * _mean_kernel(x, y, sigma)


def _mean_kernel(a: Tensor, b: Tensor, sigma: float) -> float:
    sums = [torch.exp(-torch.cdist(rows, b).square() / (2 * sigma**2)).sum() for rows in a.split(BATCH)]
    return (torch.stack(sums).sum() / (len(a) * len(b))).item()
