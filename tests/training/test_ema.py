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


class ReplacingSGD(torch.optim.SGD):
    """Gives every weight a new contiguous storage, as the 8-bit optimizers of bitsandbytes do in their steps."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data = weight.data.contiguous()
        return super().step(closure)


def test_an_average_follows_weights_whose_storage_the_optimizer_replaces():
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    average = ema.frozen_copy(network)
    pair, before = ema.following(average, network), average.weight.clone()
    storage = network.weight.data_ptr()
    network(torch.ones(1, 3, 5, 5)).sum().backward()
    ReplacingSGD(network.parameters(), lr=1.0).step()
    assert network.weight.data_ptr() != storage
    ema.update(pair, 0.75)
    torch.testing.assert_close(average.weight, 0.75 * before + 0.25 * network.weight)
    assert not torch.equal(average.weight, before)
