"""R1: the gradient penalty on real samples (paper, section 3.3)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextlib.contextmanager
def second_derivatives(device: torch.device) -> Iterator[None]:
    """Around a penalty on gradients and its backward pass: fp32, attention that can do it, nothing compiled."""
    single = torch.autocast(device.type, enabled=False)
    with single, sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield


def r1_penalty(opinion: Callable[[Tensor, Tensor], Tensor], latent: Tensor, noise: Tensor, with_noise: bool) -> Tensor:
    """|grad_x D(x, z)|^2 of every sample, differentiable (Mescheder et al. 2018, R1, without its gamma / 2).

    Args:
        opinion: (latent, noise) -> (N,).
        latent, noise: (N, C, H, W), both real.
        with_noise: add |grad_z D|^2.

    Returns:
        (N,)
    """
    inputs = [latent.detach().requires_grad_(True)]
    noise = noise.detach().requires_grad_(with_noise)
    inputs += [noise] if with_noise else []
    gradients = torch.autograd.grad(opinion(inputs[0], noise).sum(), inputs, create_graph=True)
    return sum(gradient.square().flatten(1).sum(1) for gradient in gradients)


def rotating_rows(batch: int, samples: int, turn: int) -> range:
    """Which `samples` rows of a batch are penalised at the turn-th time: evenly spaced, the first moving by one a turn.

    Batches that are contiguous shares of a larger one choose together the rows that the larger one would.
    """
    stride = batch // samples
    return range(turn % stride, batch, stride)
