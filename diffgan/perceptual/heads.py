"""From feature maps to a distance: channel normalisation, squared differences, heads."""

import warnings
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import Function

from diffgan.errors import first_line


def normalize_channels(features: Tensor, eps: float) -> Tensor:
    """Feature vectors of unit length at every position (Zhang et al. 2018, section 3).

    Args:
        features: (N, C, H, W); half precision is computed in fp32, since squares of bf16 lose the differences.
        eps: added to the squared norm.

    Returns:
        (N, C, H, W), features / sqrt(sum over the channels of features^2 + eps), in fp32 or fp64.
    """
    features = _at_least_float32(features)
    return features * _inverse_norm(features, eps)


def _at_least_float32(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()


def _inverse_norm(features: Tensor, eps: float) -> Tensor:
    """(N, C, H, W) -> (N, 1, H, W)."""
    return (features.square().sum(1, keepdim=True) + eps).rsqrt()


def head_distance(squares: Tensor, head: Tensor) -> Tensor:
    """Mean over the positions of sum_c head_c squares_c: (N, C, H, W) and (C,) -> (N,)."""
    return (squares.mean((2, 3)) * head).sum(1)  # not a matrix product, which autocast would round


def taps_distance(features: Sequence[Tensor], targets: Sequence[Tensor], heads: Sequence[Tensor], eps: float) -> Tensor:
    """The sum of `tap_distance` over taps, (N,): of each the arguments are lists. On a GPU by few kernels."""
    kernels = _kernels_for(features[0], heads[0])
    if kernels is None or features[0].shape != targets[0].shape:  # the formula broadcasts; the kernels do not
        taps = zip(features, targets, heads, strict=True)
        return sum(tap_distance(feature, target, head, eps) for feature, target, head in taps)
    return _FusedDistance.apply(kernels, eps, *features, *targets, *heads)


def tap_distance(features: Tensor, target: Tensor, head: Tensor, eps: float) -> Tensor:
    """`head_distance` of the squared difference of two normalised feature maps (Zhang et al. 2018, eq. 1).

    The gradient goes to `features` alone. Autograd would keep three maps per tap; this keeps the two input maps, which
    exist anyway, and computes the others again in the backward pass.

    Args:
        features, target: (N, C, H, W) feature maps of the network, not normalised.
        head: (C,) weights of the channels.
        eps: as in `normalize_channels`.

    Returns:
        (N,) distances >= 0 for head >= 0.
    """
    return _TapDistance.apply(features, target, head, eps)


def tap_gradient(features: Tensor, target: Tensor, head: Tensor, eps: float, grad_output: Tensor) -> Tensor:
    """The gradient of `tap_distance` in `features`, times `grad_output`, (N,); itself differentiable: (N, C, H, W).

    With u = f / |f|: dd/du = 2 h (u - v) / positions, and du/df = (1 - u u^T) / |f|.
    """
    wide = _at_least_float32(features)
    inverse = _inverse_norm(wide, eps)
    unit = wide * inverse
    factors = head * grad_output[:, None] * (2 / features[0, 0].numel())
    grad_unit = factors[:, :, None, None] * (unit - normalize_channels(target, eps))
    grad_features = inverse * (grad_unit - unit * (unit * grad_unit).sum(1, keepdim=True))
    return grad_features.to(features.dtype)


class _TapDistance(Function):
    @staticmethod
    def forward(ctx, features: Tensor, target: Tensor, head: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(features, target, head)
        ctx.eps = eps
        difference = normalize_channels(features, eps).sub_(normalize_channels(target, eps))
        return head_distance(difference.square_(), head)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        features, target, head = ctx.saved_tensors
        return tap_gradient(features, target, head, ctx.eps, grad_output), None, None, None


class _FusedDistance(Function):
    """(kernels, eps, features of every tap, targets of every tap, heads of every tap) -> (N,)."""

    @staticmethod
    def forward(ctx, kernels: ModuleType, eps: float, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.kernels, ctx.eps = kernels, eps
        return kernels.distances(*_thirds(tensors), eps)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        taps = list(zip(*_thirds(ctx.saved_tensors), strict=True))
        derivative = tap_gradient if torch.is_grad_enabled() else ctx.kernels.gradient  # the gradient of a gradient
        gradients = [derivative(*tap, ctx.eps, grad_output) for tap in taps]
        return None, None, *gradients, *[None] * (2 * len(taps))


def _thirds(tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]]:
    taps = len(tensors) // 3
    return tensors[:taps], tensors[taps : 2 * taps], tensors[2 * taps :]


def _kernels_for(features: Tensor, head: Tensor) -> ModuleType | None:
    """The module of kernels, if these tensors are of its kind; the compiler of torch fuses the formula itself."""
    if features.device.type != "cuda" or features.dtype == torch.float64 or head.dtype != torch.float32:
        return None
    return None if torch.compiler.is_compiling() else _tried_kernels(features.device)


@cache
def _tried_kernels(device: torch.device) -> ModuleType | None:
    """The module of kernels, if they can be compiled for this GPU and agree with the formula there."""
    try:
        from diffgan.perceptual import fused_heads

        with torch.cuda.device(device):
            _compare(fused_heads, device)
    except Exception as error:  # no Triton, no C compiler, another kind of GPU
        warnings.warn(f"LatentLPIPS: computed without its kernels, which is slower ({first_line(error)})", stacklevel=2)
        return None
    return fused_heads


@torch.no_grad()
def _compare(kernels: ModuleType, device: torch.device) -> None:
    """Raises AssertionError if the kernels do not compute the formula."""
    features, target = torch.linspace(0, 9, 2 * 2 * 5 * 3 * 4, device=device).sin().view(2, 2, 5, 3, 4)
    head, grad_output = torch.ones(5, device=device), torch.ones(2, device=device)
    inputs = (features, target, head, 1e-10)
    distances = kernels.distances([features], [target], [head], 1e-10)
    torch.testing.assert_close(distances, tap_distance(*inputs), rtol=1e-4, atol=1e-6)
    gradient = kernels.gradient(*inputs, grad_output)
    torch.testing.assert_close(gradient, tap_gradient(*inputs, grad_output), rtol=1e-4, atol=1e-6)
