"""The arithmetic of the metrics against other libraries and direct transcriptions."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kernel_rbf, kid_features_to_metric, mmd2

from diffgan.errors import UserError
from diffgan.evaluation.features.inception import resized_bytes
from diffgan.evaluation.metrics.cmmd import CMMD, gaussian_mmd
from diffgan.evaluation.metrics.distances import frechet_distance, kernel_distance
from diffgan.evaluation.metrics.image_distances import image_distances
from diffgan.evaluation.metrics.precision_recall import precision_recall
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.preprocessing import resize_images


def features(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    """(count, size) float64."""
    drawn = torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn * torch.linspace(0.2, 2, size, dtype=torch.float64) + shift


def smooth_images(count: int, height: int, width: int) -> torch.Tensor:
    """Images with edges, slopes and noise: (count, 3, height, width) uint8."""
    drawn = torch.Generator().manual_seed(3)
    coarse = torch.randint(0, 256, (count, 3, 7, 5), generator=drawn).float()
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="nearest")
    images[:, :, height // 2 :] = torch.linspace(0, 255, width)
    return (images + 9 * torch.randn(images.shape, generator=drawn)).clamp(0, 255).to(torch.uint8)


# ---- Fréchet distance ----


def test_frechet_distance_is_that_of_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    x, y = features(500, 24, 1), features(400, 24, 2, 0.3)
    c, d = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = linalg.sqrtm(c @ d)
    expected = float(((x.mean(0) - y.mean(0)) ** 2).sum()) + np.trace(c + d - 2 * root.real)
    assert frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_is_that_of_torch_fidelity():
    x, y = features(500, 24, 1), features(400, 24, 2, 0.3)
    expected = fid_statistics_to_metric(fid_features_to_statistics(x), fid_features_to_statistics(y), verbose=False)
    ours = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(y))
    assert ours == pytest.approx(expected[KEY_METRIC_FID], rel=1e-9)


# ---- KID ----


def test_kernel_distance_of_whole_sets_is_that_of_torch_fidelity():
    """With subsets as large as the sets it does not matter how they are drawn."""
    x, y = features(60, 16, 1), features(60, 16, 2, 0.2)
    expected = kid_features_to_metric(x, y, kid_subsets=3, kid_subset_size=60, verbose=False)
    ours = kernel_distance(x, y, subsets=3, subset_size=60)
    assert ours.value == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-9)
    assert ours.standard_error == pytest.approx(0, abs=1e-12)


def test_standard_error_of_the_kernel_distance():
    """It falls with the root of the number of subsets; torch-fidelity's deviation is of one subset."""
    x, y = features(400, 16, 1), features(400, 16, 2, 0.2)
    few, many = kernel_distance(x, y, 50, 40), kernel_distance(x, y, 800, 40)
    expected = kid_features_to_metric(x, y, kid_subsets=800, kid_subset_size=40, verbose=False)
    assert few.standard_error == pytest.approx(4 * many.standard_error, rel=0.3)
    assert 800**0.5 * many.standard_error == pytest.approx(expected[KEY_METRIC_KID_STD], rel=0.1)
    assert abs(many.value - expected[KEY_METRIC_KID_MEAN]) < 5 * many.standard_error
    assert abs(few.value - many.value) < 5 * few.standard_error


def test_smaller_sets_give_smaller_subsets():
    x, y = features(30, 8, 1), features(50, 8, 2)
    assert kernel_distance(x, y, 5, 1000).subset_size == 30
    with pytest.raises(UserError, match="two or more images a set, there are 1 and 50"):
        kernel_distance(x[:1], y, 5, 1000)


# ---- precision and recall ----


def brute_force(generated: np.ndarray, real: np.ndarray, k: int) -> tuple[float, float]:
    """Precision and recall by the definition, one image after the other."""

    def radius(point, others):  # `point` is one of `others`
        return sorted(np.sqrt(((point - other) ** 2).sum()) for other in others)[k]

    def covered(points, centres):
        radii = [radius(centre, centres) for centre in centres]
        hits = [
            any(np.sqrt(((point - centre) ** 2).sum()) <= r for centre, r in zip(centres, radii, strict=True))
            for point in points
        ]
        return float(np.mean(hits))

    return covered(generated, real), covered(real, generated)


def test_precision_and_recall_by_brute_force():
    generated, real = features(60, 5, 1), features(45, 5, 2, 0.8)
    ours = precision_recall(generated, real)
    assert ours == pytest.approx(brute_force(generated.numpy(), real.numpy(), k=3))
    assert 0.1 < ours.precision < 0.9 and 0.1 < ours.recall < 0.9


def test_precision_and_recall_at_the_ends():
    x = features(50, 5, 1)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    narrow = 0.01 * x + x[:1]  # all near one real image
    assert precision_recall(narrow, x).precision == 1 and precision_recall(narrow, x).recall < 0.1
    with pytest.raises(UserError, match="more than 3 images a set, there are 3 and 50"):
        precision_recall(x[:3], x)


# ---- CMMD ----


def test_gaussian_mmd_by_brute_force():
    x, y, sigma = features(13, 6, 1), features(19, 6, 2, 0.5), 1.7

    def mean(a, b):
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * sigma**2)) for p in a.numpy() for q in b.numpy()])

    assert gaussian_mmd(x, y, sigma) == pytest.approx(mean(x, x) + mean(y, y) - 2 * mean(x, y), rel=1e-10)
    assert gaussian_mmd(x, x, sigma) == pytest.approx(0, abs=1e-12)


def test_cmmd_is_one_biased_estimate_of_normalized_features():
    x, y = features(40, 6, 1), features(40, 6, 2, 0.5)
    a, b = ((z / z.norm(dim=1, keepdim=True)).numpy() for z in (x, y))
    kernels = [kernel_rbf(p, q, kid_kernel_rbf_sigma=10) for p, q in ((a, a), (a, b), (b, b))]
    metric = CMMD("clip")
    metric.reference = y
    assert metric.summarize(x) == {"cmmd": pytest.approx(1000 * mmd2(*kernels, mmd_est="biased"), rel=1e-8)}
    other = CMMD("clip_0123abcd")
    assert other.name == "mmd_clip_0123abcd"  # other weights are not CMMD


# ---- distances between two images ----


def test_distances_between_images():
    a, b = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    assert image_distances(a, b, "efficientnet").tolist() == [5, 1]
    cosine = image_distances(a, torch.tensor([[6.0, 8.0], [0.0, 2.0]]), "dreamsim")
    assert cosine.tolist() == pytest.approx([0, 1], abs=1e-12)


# ---- resizing ----


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (512, 300)])
def test_inceptions_resizing_is_clean_fids(height, width):
    """clean-fid resizes each channel as Pillow's float image and does not round; ours is rounded to bytes."""
    images = smooth_images(2, height, width)
    for image, ours in zip(images, resized_bytes(images, 299), strict=True):
        channels = [Image.fromarray(channel.float().numpy()) for channel in image]
        resized = [channel.resize((299, 299), Image.Resampling.BICUBIC) for channel in channels]
        expected = np.stack([np.asarray(channel).clip(0, 255) for channel in resized])
        difference = np.abs(ours.numpy() - expected)
        assert difference.max() < 0.51 and difference.mean() < 0.26


def test_squares_are_those_of_pillow():
    image = smooth_images(1, 61, 90)[0].permute(1, 2, 0).numpy()
    square = Image.fromarray(np.ascontiguousarray(image[:, 14 : 14 + 61]))
    expected = np.array(square.resize((24, 24), Image.Resampling.LANCZOS))
    ours = resize_images(torch.from_numpy(image).permute(2, 0, 1)[None], 24)[0]
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), expected)
