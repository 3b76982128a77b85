"""From feature maps to a distance: channel normalisation, squared differences, heads."""

import torch
from torch import Tensor
from torch.autograd import Function


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


class _TapDistance(Function):
    @staticmethod
    def forward(ctx, features: Tensor, target: Tensor, head: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(features, target, head)
        ctx.eps = eps
        difference = normalize_channels(features, eps).sub_(normalize_channels(target, eps))
        return head_distance(difference.square_(), head)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        """With u = f / |f|: dd/du = 2 h (u - v) / positions, and du/df = (1 - u u^T) / |f|; itself differentiable."""
        features, target, head = ctx.saved_tensors
        wide = _at_least_float32(features)
        inverse = _inverse_norm(wide, ctx.eps)
        unit = wide * inverse
        factors = head * grad_output[:, None] * (2 / features[0, 0].numel())
        grad_unit = factors[:, :, None, None] * (unit - normalize_channels(target, ctx.eps))
        grad_features = inverse * (grad_unit - unit * (unit * grad_unit).sum(1, keepdim=True))
        return grad_features.to(features.dtype), None, None, None
