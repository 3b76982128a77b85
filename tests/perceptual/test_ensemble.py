import pytest
import torch

from diffgan.perceptual.ensemble import Ensemble, cutout_mask


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("groups", ["", "b", "g", "o", "bg", "bgo"])
def test_both_inputs_get_the_same_transform(groups):
    x = torch.randn(4, 3, 16, 16)
    first, second = Ensemble(groups)(x, x.clone(), seeded())
    assert torch.equal(first, second)


def test_samples_get_different_transforms_and_seeds_repeat_them():
    x = torch.randn(1, 3, 16, 16).expand(6, -1, -1, -1)
    first, _ = Ensemble("bg")(x, x, seeded(1))
    again, _ = Ensemble("bg")(x, x, seeded(1))
    assert torch.equal(first, again)
    assert all(not torch.equal(first[0], other) for other in first[1:])


def test_no_group_changes_nothing():
    x, y = torch.randn(2, 2, 3, 8, 8)
    first, second = Ensemble("")(x, y)
    assert torch.equal(first, x) and torch.equal(second, y)


def test_blit_moves_samples_onto_samples():
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


def test_gradient_reaches_the_first_input():
    x, y = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64)
    x.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda t: Ensemble("bg")(t, y, seeded())[0], x)


def test_cutout_removes_at_most_a_quarter():
    share = 1 - cutout_mask(500, (16, 16), seeded()).mean((1, 2, 3))
    assert share.max() == 0.25 and share.min() >= 1 / 16 - 0.02 and share.unique().numel() > 5


def test_unknown_group_is_named():
    with pytest.raises(ValueError, match="'x'"):
        Ensemble("bx")
