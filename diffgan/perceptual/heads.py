"""From features to a distance: channel normalisation, squared differences, heads; lean in memory."""

import torch
from torch import Tensor
from torch.autograd import Function


def unit(features: Tensor, eps: float) -> Tensor:
    """Features (N, C, H, W) divided by sqrt(sum over the channels of their squares + eps); fp32 or fp64."""
    features = features if features.dtype == torch.float64 else features.float()  # bf16 squares lose the differences
    return features * _inverse_norm(features, eps)


def _inverse_norm(features: Tensor, eps: float) -> Tensor:
    return (features.square().sum(1, keepdim=True) + eps).rsqrt()


def head_distance(squares: Tensor, head: Tensor) -> Tensor:
    """Mean over the positions of sum_c head_c squares_c: (N, C, H, W) and (C,) -> (N,)."""
    return (squares.mean((2, 3)) * head).sum(1)  # no matrix product: autocast would round it


def tap_distance(features: Tensor, goal: Tensor, head: Tensor, eps: float) -> Tensor:
    """`head_distance` of the squared difference of two normalised feature maps (Zhang et al. 2018, eq. 1).

    features, goal: (N, C, H, W) as the network gives them; head: (C,) -> (N,). The gradient goes to `features` alone.
    Autograd would keep three maps of every tap; this keeps the two that are there anyway and computes the rest again.
    """
    return _TapDistance.apply(features, goal, head, eps)


class _TapDistance(Function):
    @staticmethod
    def forward(ctx, features: Tensor, goal: Tensor, head: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(features, goal, head)
        ctx.eps = eps
        return head_distance(unit(features, eps).sub_(unit(goal, eps)).square_(), head)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        """With u = f / |f|: dd/du = 2 h (u - v) / positions, and du/df = (1 - u u^T) / |f|; differentiable itself."""
        features, goal, head = ctx.saved_tensors
        wide = features if features.dtype == torch.float64 else features.float()
        inverse = _inverse_norm(wide, ctx.eps)
        u = wide * inverse
        factors = head * gradient[:, None] * (2 / features[0, 0].numel())
        slope = factors[:, :, None, None] * (u - unit(goal, ctx.eps))
        slope = inverse * (slope - u * (u * slope).sum(1, keepdim=True))
        return slope.to(features.dtype), None, None, None
