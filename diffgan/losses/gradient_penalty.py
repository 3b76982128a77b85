"""R1: the gradient penalty on real samples (paper, section 3.3)."""

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgan.conditioning import Conditioning
from diffgan.losses.gan import score
from diffgan.nets.discriminator import MultiScaleDiscriminator


@contextlib.contextmanager
def second_derivatives(device: torch.device) -> Iterator[None]:
    """Context for a penalty on gradients and its backward pass: float32, math attention, eager mode.

    The fused attention kernels and compiled code have no second derivative.
    """
    float32 = torch.autocast(device.type, enabled=False)
    with float32, sdpa_kernel(SDPBackend.MATH), torch.compiler.set_stance("force_eager"):
        yield


def r1_loss(
    discriminator: MultiScaleDiscriminator,
    latent: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    gamma: float,
    with_noise: bool = False,
) -> Tensor:
    """(gamma / 2) |grad_x D(x, z, c)|^2, averaged over real samples (Mescheder et al. 2018, eq. 9).

    Call it inside `second_derivatives`.

    Args:
        discriminator: D.
        latent: real latents, (N, C, H, W).
        noise: their noise, (N, C, H, W).
        conditioning: N rows.
        gamma: weight of the penalty, at least 0.
        with_noise: add the gradient with respect to z.

    Returns:
        () float32.
    """
    conditioning = conditioning.map(Tensor.float)

    def mean_logit(latent: Tensor, noise: Tensor) -> Tensor:
        return score(discriminator(latent, noise, conditioning))

    return 0.5 * gamma * r1_penalty(mean_logit, latent.float(), noise.float(), with_noise).mean()


def r1_penalty(function: Callable[[Tensor, Tensor], Tensor], latent: Tensor, noise: Tensor, with_noise: bool) -> Tensor:
    """|grad_x D(x, z)|^2 of every sample, differentiable (Mescheder et al. 2018, R1 without gamma / 2).

    Args:
        function: D as a function of (latent, noise) with one value per sample, (N,).
        latent, noise: (N, C, H, W), both real.
        with_noise: add |grad_z D|^2.

    Returns:
        (N,)
    """
    inputs = [latent.detach().requires_grad_(True)]
    noise = noise.detach().requires_grad_(with_noise)
    inputs += [noise] if with_noise else []
    gradients = torch.autograd.grad(function(inputs[0], noise).sum(), inputs, create_graph=True)
    return sum(gradient.square().flatten(1).sum(1) for gradient in gradients)


def rotating_rows(batch: int, samples: int, penalty: int) -> range:
    """Rows of a batch that R1 penalises: evenly spaced, shifted by one row from one penalty to the next.

    Processes that hold contiguous shares of a global batch choose together the rows that the global batch would.

    Args:
        batch: rows of the batch.
        samples: rows to choose; divides `batch`.
        penalty: number of the penalties before this one.
    """
    stride = batch // samples
    return range(penalty % stride, batch, stride)
