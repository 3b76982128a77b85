"""The mean and covariance of features, from the features or from a file of another tool."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffgan.errors import UserError

MAX_BYTES = 1 << 30  # of the arrays in a file; features of 8192 numbers have so many


class FeatureStatistics(NamedTuple):
    """The Gaussian that stands for a set of features, in float64.

    mean: (D,).  root: (D, r), root @ root.T is the unbiased covariance; r is the smaller of images and features.
    """

    mean: Tensor
    root: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "FeatureStatistics":
        """Features (N, D), N >= 2."""
        if len(features) < 2:
            raise UserError(f"a covariance needs two or more images, there are {len(features)}")
        features = features.double()
        mean = features.mean(0)
        triangle = torch.linalg.qr(features - mean, mode="r").R  # (r, D), triangle.T @ triangle = (N - 1) covariance
        return cls(mean, triangle.T / (len(features) - 1) ** 0.5)

    @classmethod
    def of_moments(cls, mean: Tensor, covariance: Tensor) -> "FeatureStatistics":
        """mean: (D,).  covariance: (D, D), symmetric; eigenvalues that rounding made negative count as 0."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(mean.double(), vectors * values.clamp_min(0).sqrt())


def read_statistics(file: Path) -> FeatureStatistics:
    """Statistics in the format of other tools: an .npz of `mu` (D,) and `sigma` (D, D); raises UserError if not."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if sum(entry.file_size for entry in arrays.zip.infolist()) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES >> 20} MB")
            mean, covariance = (torch.from_numpy(arrays[name]).double() for name in ("mu", "sigma"))
        return FeatureStatistics.of_moments(mean, covariance)
    except Exception as error:  # numpy raises whatever the bytes lead it to
        raise UserError(f"{file}: is no .npz of mu (D,) and sigma (D, D) ({error})") from error
