"""Regression losses against values computed by hand."""

import math

import torch

from diffgan.losses.regression import MSE, PseudoHuber


def test_mse_by_hand():
    x, y = torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 3.0])[:, None, None, None].expand(2, 1, 2, 2)
    assert torch.equal(MSE()(x, y), torch.tensor([1.0, 9.0]))


def test_pseudo_huber_is_quadratic_near_zero_and_the_norm_far_away():
    c = 0.00054 * math.sqrt(16)
    zero = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    near, far = torch.full_like(zero, 1e-6), torch.full_like(zero, 10.0)
    torch.testing.assert_close(PseudoHuber()(near, zero), near.square().sum().view(1) / (2 * c), rtol=1e-5, atol=0)
    torch.testing.assert_close(PseudoHuber()(far, zero), torch.tensor([40.0 - c], dtype=torch.float64))
    assert PseudoHuber()(zero, zero).item() == 0
