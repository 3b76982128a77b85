"""Fréchet and kernel distances against closed forms and a direct transcription."""

import numpy as np
import pytest
import torch

from diffgan.evaluation.metrics.distances import frechet_distance, kernel_distance, polynomial_mmd
from diffgan.evaluation.metrics.statistics import FeatureStatistics


def _features(count: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed))


def test_equal_sets_have_no_distance():
    statistics = FeatureStatistics.of(_features(300, 20))
    assert frechet_distance(statistics, statistics) == pytest.approx(0, abs=1e-10)


def test_shifted_gaussians_are_their_means_apart():
    x, shift = _features(300, 20), torch.linspace(-1, 1, 20)
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(x + shift)
    assert frechet_distance(a, b) == pytest.approx(shift.square().sum().item(), rel=1e-6)


def test_diagonal_covariances():
    s, t = torch.rand(30, dtype=torch.float64) + 0.1, torch.rand(30, dtype=torch.float64) + 0.1
    mean = torch.zeros(30, dtype=torch.float64)
    distance = frechet_distance(FeatureStatistics(mean, s.sqrt().diag()), FeatureStatistics(mean + 1, t.sqrt().diag()))
    assert distance == pytest.approx(30 + (s.sqrt() - t.sqrt()).square().sum().item(), rel=1e-12)


def test_against_the_root_of_the_product():
    x, y = _features(400, 12, 1).double(), _features(400, 12, 2).double() ** 3
    c, d = x.T.cov(), y.T.cov()
    root = torch.linalg.eigvals(c @ d).sqrt().real.sum()
    direct = (x.mean(0) - y.mean(0)).square().sum() + (c + d).trace() - 2 * root
    a, b = FeatureStatistics.of(x), FeatureStatistics.of(y)
    assert frechet_distance(a, b) == pytest.approx(direct.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(direct.item(), rel=1e-9)


def test_fewer_images_than_features():
    x = _features(10, 64)
    a = FeatureStatistics.of(x)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, FeatureStatistics.of(2 * x)) > 1


def test_one_image_has_no_covariance():
    with pytest.raises(ValueError, match="two or more images"):
        FeatureStatistics.of(_features(1, 4))


def _direct_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def k(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    xx = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    yy = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return float(np.mean(xx) + np.mean(yy) - 2 * np.mean([k(a, b) for a in x for b in y]))


def test_mmd_against_a_direct_sum():
    x, y = _features(17, 5, 1).double(), 0.5 + _features(23, 5, 2).double()
    assert polynomial_mmd(x, y).item() == pytest.approx(_direct_mmd(x.numpy(), y.numpy()), rel=1e-10)


def test_mmd_is_unbiased():
    values = torch.stack([polynomial_mmd(_features(20, 4, 2 * i), _features(20, 4, 2 * i + 1)) for i in range(800)])
    assert abs(values.mean()) < 3 * values.std() / 800**0.5
    assert values.min() < 0


def test_kernel_distance_is_repeatable_and_grows():
    x, y = _features(300, 8, 1), _features(300, 8, 2)
    near, far = kernel_distance(x, y, 50, 250), kernel_distance(x, y + 1, 50, 250)
    assert near == kernel_distance(x, y, 50, 250) and near.subset_size == 250
    assert abs(near.value) < 0.1 < far.value
