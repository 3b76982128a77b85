"""R1: the gradient penalty on real samples (paper, section 3.3), exact and by finite differences."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgan.conditioning import Conditioning
from diffgan.losses.gan import score
from diffgan.nets.read_outs import Discriminator
from diffgan.training.precision import without_autocast, without_tf32

# Length of the step of finite differences, as a share of the input's. The gradient of the glyph discriminator is wrong
# by less than 1% up to 1e-4, and by 70% at 1e-3 where its second derivatives are large.
RELATIVE_STEP = 1e-4

MeanLogit = Callable[[Tensor, Tensor], Tensor]  # D as a function of (latent, noise), with one value per sample: (N,)


class Penalty(NamedTuple):
    """loss: (), its gradient is that of (gamma / 2) |grad_x D|^2.  squared_norm: |grad_x D|^2, (), without graph."""

    loss: Tensor
    squared_norm: Tensor


class R1(NamedTuple):
    """A way to compute the penalty.

    squared_norm: (D, latent, noise, with_noise) -> (surrogate, value), (N,) each: |grad_x D|^2 of every sample. The
    gradient is that of the surrogate.  second_derivatives: whether the backward pass of the surrogate needs those.
    """

    squared_norm: Callable[[MeanLogit, Tensor, Tensor, bool], tuple[Tensor, Tensor]]
    second_derivatives: bool


@contextlib.contextmanager
def full_precision(device: torch.device, second_derivatives: bool) -> Iterator[None]:
    """Context for a penalty on gradients and its backward pass: float32 without TF32, eager mode.

    Args:
        device: where D computes.
        second_derivatives: use math attention; the fused attention kernels have no second derivative.
    """
    attention = sdpa_kernel(SDPBackend.MATH) if second_derivatives else contextlib.nullcontext()
    with without_tf32(), without_autocast(device), attention, torch.compiler.set_stance("force_eager"):
        yield


def r1_loss(
    r1: R1,
    discriminator: Discriminator,
    latent: Tensor,
    noise: Tensor,
    conditioning: Conditioning,
    gamma: float,
    with_noise: bool = False,
) -> Penalty:
    """(gamma / 2) |grad_x D(x, z, c)|^2, averaged over real samples (Mescheder et al. 2018, eq. 9).

    Call it and the backward pass inside `full_precision`.

    Args:
        r1: `EXACT` or `FINITE_DIFFERENCE`.
        discriminator: D.
        latent: real latents, (N, C, H, W).
        noise: their noise, (N, C, H, W).
        conditioning: N rows.
        gamma: weight of the penalty, at least 0.
        with_noise: add the gradient with respect to z.
    """
    latent, noise, conditioning = latent.float(), noise.float(), conditioning.map(Tensor.float)

    def mean_logit(latent: Tensor, noise: Tensor) -> Tensor:
        copies = len(latent) // len(conditioning.text)
        return score(discriminator(latent, noise, Conditioning.cat([conditioning] * copies)))

    surrogate, value = r1.squared_norm(mean_logit, latent, noise, with_noise)
    return Penalty(0.5 * gamma * surrogate.mean(), value.mean())


def exact_squared_norm(function: MeanLogit, latent: Tensor, noise: Tensor, with_noise: bool) -> tuple[Tensor, Tensor]:
    """|grad_x D(x, z)|^2 of every sample by a double backward pass (Mescheder et al. 2018, R1 without gamma / 2).

    Args:
        function: D.
        latent, noise: (N, C, H, W), both real.
        with_noise: add |grad_z D|^2.

    Returns:
        The squared norms with their graph, and without: (N,) each.
    """
    gradients = _input_gradients(function, latent, noise, with_noise, create_graph=True)
    squared_norm = _squared_norm(gradients)
    return squared_norm, squared_norm.detach()


def finite_difference_squared_norm(
    function: MeanLogit, latent: Tensor, noise: Tensor, with_noise: bool
) -> tuple[Tensor, Tensor]:
    """|grad_x D(x, z)|^2 of every sample by central differences along the gradient, without second derivatives.

    With v = grad_x D, held constant, the gradient of |grad_x D|^2 / 2 in D's weights is that of v . grad_x D, which is
    (D(x + s v) - D(x - s v)) / (2 s) up to terms in s^2. The step s is such that |s v| is `RELATIVE_STEP` of |x|.

    Args:
        function: D; it is called with twice the rows.
        latent, noise: (N, C, H, W), both real.
        with_noise: take the gradient in (x, z) instead of x.

    Returns:
        A surrogate that has the gradient of the squared norm in D's weights, and the squared norm itself: (N,) each.
    """
    gradients = _input_gradients(function, latent, noise, with_noise, create_graph=False)
    squared_norm = _squared_norm(gradients)
    inputs = [latent, noise][: len(gradients)]
    length = _squared_norm(inputs).sqrt()
    step = RELATIVE_STEP * length / squared_norm.sqrt().clamp(min=torch.finfo(torch.float32).tiny)  # (N,)
    offsets = [step[:, None, None, None] * gradient for gradient in gradients]
    shifted = [torch.cat([x + offset, x - offset]) for x, offset in zip(inputs, offsets, strict=True)]
    if not with_noise:
        shifted.append(torch.cat([noise, noise]))
    ahead, behind = function(*shifted).chunk(2)  # (N,) each
    return (ahead - behind) / step, squared_norm


def _input_gradients(
    function: MeanLogit, latent: Tensor, noise: Tensor, with_noise: bool, create_graph: bool
) -> tuple[Tensor, ...]:
    """grad_x D, and grad_z D if `with_noise`: (N, C, H, W) each."""
    latent = latent.detach().requires_grad_(True)
    noise = noise.detach().requires_grad_(with_noise)
    inputs = [latent, noise] if with_noise else [latent]
    return torch.autograd.grad(function(latent, noise).sum(), inputs, create_graph=create_graph)


def _squared_norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """Sum of squares of every sample over all tensors: (N,)."""
    return sum(tensor.square().flatten(1).sum(1) for tensor in tensors)


EXACT = R1(exact_squared_norm, second_derivatives=True)
FINITE_DIFFERENCE = R1(finite_difference_squared_norm, second_derivatives=False)
METHODS = {"exact": EXACT, "finite_difference": FINITE_DIFFERENCE}  # by their names in configurations


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
