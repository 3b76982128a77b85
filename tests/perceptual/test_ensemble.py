"""The ensemble: one transform for both inputs, another for each sample; ranges and derivatives of its groups."""

import pytest
import torch
import torch.nn.functional as F

from diffgan.perceptual.ensemble import Ensemble, change_colours, colour_changes, cutout_mask, shared_noise
from diffgan.perceptual.resample import positions, resample


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("groups", ["", "b", "g", "c", "n", "o", "bg", "bgo", "bgcno"])
def test_both_inputs_get_the_same_transform(groups):
    x = torch.randn(4, 3, 16, 16)
    first, second = Ensemble(groups)(x, x.clone(), seeded())
    assert torch.equal(first, second)
    assert torch.equal(first, x) == (groups == "")


def test_samples_get_different_transforms_that_a_seed_repeats():
    x = torch.randn(1, 3, 16, 16).expand(6, -1, -1, -1)
    first, _ = Ensemble("bg")(x, x, seeded(1))
    again, _ = Ensemble("bg")(x, x, seeded(1))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], other) for other in first[1:])


def test_no_group_changes_nothing():
    x, y = torch.randn(2, 2, 3, 8, 8)
    first, second = Ensemble("")(x, y)
    assert torch.equal(first, x) and torch.equal(second, y)


def test_pixel_blitting_maps_samples_onto_samples():
    x = torch.rand(32, 1, 16, 16)
    moved, _ = Ensemble("b")(x, x, seeded())
    values = x.flatten(1)
    for sample, original in zip(moved.flatten(1), values, strict=True):
        nearest = (sample[:, None] - original[None, :]).abs().min(1).values
        assert nearest.max() < 1e-4  # every value of the output is a value of the input
    assert not torch.allclose(moved, x)


def test_rotation_keeps_a_centred_disc():
    axis = torch.linspace(-1, 1, 64)
    disc = ((axis[:, None] ** 2 + axis[None, :] ** 2).sqrt() < 0.5).float().expand(200, 1, 64, 64)
    shapes, _ = Ensemble("g")(disc, disc, seeded())
    area = shapes.mean((1, 2, 3)) / disc[0].mean()
    assert 0.8 < area.median() < 1.25 and area.std() > 0.1  # scale varies about 1


@pytest.mark.parametrize("groups", ["b", "g", "c", "n", "o", "bgcno"])
def test_derivatives_of_the_transforms(groups):
    x, y = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: Ensemble(groups)(t, y, seeded())[0], x)
    assert torch.autograd.gradgradcheck(lambda t: Ensemble(groups)(t, y, seeded())[0] ** 2, x)


def test_resampling_is_grid_sample_and_has_its_derivative():
    x = torch.randn(3, 2, 9, 9, dtype=torch.float64, requires_grad=True)
    theta = torch.eye(2, 3, dtype=torch.float64) + 0.4 * torch.randn(3, 2, 3, dtype=torch.float64)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    stock = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    torch.testing.assert_close(resample(x, theta), stock)
    weights = torch.randn_like(stock)
    ours, theirs = (torch.autograd.grad((y * weights).sum(), x)[0] for y in (resample(x, theta), stock))
    torch.testing.assert_close(ours, theirs)
    assert resample(x.bfloat16(), theta).dtype == torch.float32


def test_positions_are_those_of_affine_grid():
    theta = torch.randn(3, 2, 3, dtype=torch.float64)
    stock = F.affine_grid(theta, [3, 1, 6, 10], align_corners=False)
    torch.testing.assert_close(positions(theta, 6, 10), stock)


@pytest.mark.parametrize("groups", ["b", "g", "bgcno"])
def test_autocast_changes_nothing(groups):
    """Transformed inputs and gradient are equal; both are computed inside autocast, as in a training step."""
    x, y = torch.randn(4, 3, 16, 16, requires_grad=True), torch.randn(4, 3, 16, 16)
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            transformed = Ensemble(groups)(x, y, seeded())
            distance = (transformed[0] - transformed[1]).square().sum()
            results.append((*transformed, *torch.autograd.grad(distance, x)))
    for expected, under_autocast in zip(*results, strict=True):
        assert torch.equal(under_autocast, expected)


def test_colours_are_changed_about_their_means():
    x = torch.randn(5, 4, 8, 8, dtype=torch.float64)
    same = change_colours(x, torch.tensor([[0.0, 1.0, 1.0]]).double())
    torch.testing.assert_close(same, x)
    grey = change_colours(x, torch.tensor([[0.25, 1.0, 0.0]]).double())
    torch.testing.assert_close(grey, (x.mean(1, keepdim=True) + 0.25).expand_as(x))
    half = change_colours(x, torch.tensor([[0.0, 0.5, 1.0]]).double())
    torch.testing.assert_close(half.std((1, 2, 3)), 0.5 * x.std((1, 2, 3)))
    torch.testing.assert_close(half.mean((1, 2, 3)), x.mean((1, 2, 3)))


def test_draws_stay_in_their_ranges():
    draws = colour_changes(4000, seeded())
    low, high = torch.tensor([-0.5, 0.5, 0.0]), torch.tensor([0.5, 1.5, 2.0])
    assert (draws >= low).all() and (draws <= high).all()
    torch.testing.assert_close(draws.mean(0), (low + high) / 2, atol=0.05, rtol=0)
    noise = shared_noise(torch.Size([4000, 1, 8, 8]), seeded())
    torch.testing.assert_close(noise.square().mean(), torch.tensor(0.01), atol=1e-3, rtol=0)


def test_cutout_removes_at_most_a_quarter():
    share = 1 - cutout_mask(500, (16, 16), seeded()).mean((1, 2, 3))
    assert share.max() == 0.25 and share.min() >= 1 / 16 - 0.02 and share.unique().numel() > 5


def test_unknown_group_is_named():
    with pytest.raises(ValueError, match="'x'"):
        Ensemble("bx")
