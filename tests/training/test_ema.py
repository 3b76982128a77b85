"""The moving average of weights."""

import pytest
import torch

from diffgan.training import ema
from diffgan.training.ema import decay, ramped


def test_decay_halves_at_the_half_life_and_composes():
    assert decay(500, 500) == 0.5
    assert decay(300, 500) * decay(200, 500) == pytest.approx(0.5)
    assert decay(8, 0) == 0 and ramped(1000, 400) == 100 and ramped(1000, 10**6) == 1000


def test_an_average_follows_parameters_and_copies_buffers():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = ema.frozen_copy(network)
    before = average[0].weight.clone()
    network(torch.randn(8, 3)).sum().backward()
    with torch.no_grad():
        network[0].weight.add_(1.0)
    ema.update(ema.following(average, network), 0.75)
    torch.testing.assert_close(average[0].weight, 0.75 * before + 0.25 * network[0].weight)
    assert torch.equal(average[1].running_mean, network[1].running_mean)
    assert not average.training and not any(parameter.requires_grad for parameter in average.parameters())
