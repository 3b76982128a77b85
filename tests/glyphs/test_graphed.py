"""The denoiser as CUDA graphs: the same function, whose weights may change."""

import pytest
import torch

from diffgan.glyphs.graphed import Velocity, graphed
from tests.pipelines import unet

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def loss_and_gradients(velocity, network, inputs):
    loss = velocity(*inputs).square().mean()
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    return [loss.detach(), *(gradient.clone() for gradient in gradients)]


def test_graphs_compute_what_the_network_does_before_and_after_a_step():
    torch.manual_seed(0)
    network = unet().cuda().to(memory_format=torch.channels_last).train()
    inputs = torch.randn(4, 4, 8, 8).cuda(), torch.tensor([0, 250, 500, 999]).cuda(), torch.randn(4, 16, 16).cuda()
    recorded = graphed(network, batch_size=4, tokens=16)
    for _ in range(2):
        for ours, expected in zip(
            loss_and_gradients(recorded, network, inputs),
            loss_and_gradients(Velocity(network), network, inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.01 * torch.randn_like(weight))
