"""Bilinear resampling of images under affine maps, differentiable any number of times in the images.

`torch.nn.functional.grid_sample` has no second derivative. Under fixed maps resampling is linear, so its derivative
is its adjoint and the derivative of that is the resampling again: two functions that name each other.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

BILINEAR, REFLECTION = 0, 2  # as ATen numbers its modes and paddings


def resample(images: Tensor, theta: Tensor) -> Tensor:
    """Images under affine maps, read between samples bilinearly and beyond the border by reflection.

    Args:
        images: (N, C, H, W); bf16 and fp16 are resampled in fp32, which positions need.
        theta: (N, 2, 3) maps of output to input positions in the coordinates of `affine_grid` (a side is 2 long); they
            get no gradient.

    Returns:
        (N, C, H, W), fp32 or fp64.
    """
    images = images if images.dtype == torch.float64 else images.float()
    grid = F.affine_grid(theta.to(images), list(images.shape), align_corners=False).detach()
    return _Resample.apply(images, grid)


class _Resample(Function):
    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return torch.grid_sampler_2d(images, grid, BILINEAR, REFLECTION, False)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (grid,) = ctx.saved_tensors
        return _Adjoint.apply(gradient, grid, ctx.shape), None


class _Adjoint(Function):
    @staticmethod
    def forward(ctx, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        images = gradient.new_empty(1).expand(shape)  # only its shape is read
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(gradient, images, grid, BILINEAR, REFLECTION, False, [True, False])[0]

    @staticmethod
    def backward(ctx, second: Tensor):
        (grid,) = ctx.saved_tensors
        return _Resample.apply(second, grid), None, None
