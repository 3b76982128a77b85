"""Bilinear resampling of images under affine maps, differentiable any number of times in the images.

`torch.nn.functional.grid_sample` has no second derivative. For fixed maps resampling is linear in the images: its
derivative is its adjoint, and the derivative of the adjoint is the resampling. Two autograd functions refer to each
other accordingly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from diffgan.training.transfer import to_device

BILINEAR, REFLECTION = 0, 2  # numbers of ATen's interpolation and padding modes


def resample(images: Tensor, theta: Tensor) -> Tensor:
    """Images under affine maps, with bilinear interpolation and reflection at the border.

    Args:
        images: (N, C, H, W); bf16 and fp16 are resampled in fp32, since positions need its precision.
        theta: (N, 2, 3) maps of output to input positions in the coordinates of `affine_grid`, in which a side is 2
            long; no gradient goes to them.

    Returns:
        (N, C, H, W), fp32 or fp64.
    """
    images = images if images.dtype == torch.float64 else images.float()
    theta = to_device(theta, images.device).to(images.dtype)
    if theta.device.type == "cpu":
        grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    else:
        grid = positions(theta, *images.shape[-2:])
    return _Resample.apply(images, grid.detach())


def positions(theta: Tensor, height: int, width: int) -> Tensor:
    """What `affine_grid` gives, without its matrix product, which a GPU may round to TF32.

    Args:
        theta: (N, 2, 3) maps, see `resample`.
        height, width: of the output in pixels.

    Returns:
        Where its pixels are in the input, (N, height, width, 2).
    """
    like = {"device": theta.device, "dtype": theta.dtype}
    x = torch.linspace(1 / width - 1, 1 - 1 / width, width, **like)
    y = torch.linspace(1 / height - 1, 1 - 1 / height, height, **like)
    rows = torch.addcmul(theta[:, None, None, :, 2], theta[:, None, None, :, 1], y.view(-1, 1, 1))  # (N, H, 1, 2)
    return torch.addcmul(rows, theta[:, None, None, :, 0], x.view(-1, 1))  # (N, H, W, 2)


class _Resample(Function):
    """(N, C, H, W) images and an (N, H, W, 2) grid -> (N, C, H, W)."""

    @staticmethod
    def forward(ctx, images: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = images.shape
        return torch.grid_sampler_2d(images, grid, BILINEAR, REFLECTION, False)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (grid,) = ctx.saved_tensors
        return _Adjoint.apply(grad_output, grid, ctx.shape), None


class _Adjoint(Function):
    """The adjoint of `_Resample` for the same grid: the gradient of its output -> the gradient of its images."""

    @staticmethod
    def forward(ctx, grad_output: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        images = grad_output.new_empty(1).expand(shape)  # only its shape is read
        backward = torch.ops.aten.grid_sampler_2d_backward
        return backward(grad_output, images, grid, BILINEAR, REFLECTION, False, [True, False])[0]

    @staticmethod
    def backward(ctx, grad_images: Tensor):
        (grid,) = ctx.saved_tensors
        return _Resample.apply(grad_images, grid), None, None
