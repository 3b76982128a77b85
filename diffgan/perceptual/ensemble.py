"""The ensemble of E-LatentLPIPS: one random transform per sample, the same for both inputs (paper, section 3.2).

The transforms of the groups b, g, n and o and their ranges are those of ADA (Karras et al. 2020, appendix B), those of
group c are DiffAugment's (Zhao et al. 2020), as in the authors' package E-LatentLPIPS.
"""

import math

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.perceptual.resample import resample
from diffgan.training.precision import without_autocast
from diffgan.training.transfer import to_device

GROUPS = "bgcno"
DEFAULT = "bgo"


class Ensemble(nn.Module):
    """Random differentiable transforms of pairs of latents. All transforms of the chosen groups are drawn every time.

    b: horizontal flip, quarter turns, integer shift up to 1/8 of the side.
    g: isotropic scale 2^N(0, 0.2), rotation by any angle before and after the anisotropic scale 2^N(0, 0.2),
       fractional shift N(0, 1/8) of the side.
    c: brightness + U(-0.5, 0.5), contrast x U(0.5, 1.5) about the mean, saturation x U(0, 2) about the channels' mean.
    n: Gaussian noise of standard deviation |N(0, 0.1)|, the same on both inputs.
    o: cutout of a square of half the side.

    The geometric transforms (b and g) compose to one affine map and one bilinear resampling with reflection at the
    border.

    Args:
        groups: letters of the groups in use, e.g. "bgo"; "" changes nothing.

    Raises:
        UserError: a letter is not the name of a group.
    """

    def __init__(self, groups: str = DEFAULT):
        super().__init__()
        if unknown := set(groups) - set(GROUPS):
            raise UserError(f"ensemble group {sorted(unknown)[0]!r} is none of {', '.join(GROUPS)}")
        self.groups = groups

    def forward(self, first: Tensor, second: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Apply the same transform to both inputs, another one for each sample.

        Autocast is disabled, since positions need more precision than bfloat16 has.

        Args:
            first, second: (N, C, H, W).
            generator: on the CPU; makes the transforms repeatable.

        Returns:
            Both inputs transformed, (N, C, H, W) each.
        """
        with without_autocast(first.device):
            return self._transform(first, second, generator)

    def _transform(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        both = torch.cat([first, second], dim=1)  # (N, 2C, H, W)
        if set(self.groups) & set("bg"):
            both = resample(both, self.draw_affine(len(both), both.shape[-1], generator))
        if "c" in self.groups:
            changes = _like(colour_changes(len(both), generator), both)
            both = torch.cat([change_colours(images, changes) for images in both.chunk(2, dim=1)], dim=1)
        if "n" in self.groups:
            noise = _like(shared_noise(first.shape, generator), both)
            both = both + torch.cat([noise, noise], dim=1)
        if "o" in self.groups:
            both = both * _like(cutout_mask(len(both), both.shape[-2:], generator), both)
        return both.chunk(2, dim=1)

    def draw_affine(self, count: int, side: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the affine maps of the groups b and g.

        Args:
            count: number of maps N.
            side: side of the images in pixels.
            generator: on the CPU; makes the maps repeatable.

        Returns:
            (N, 2, 3) maps of output to input positions in the coordinates of `affine_grid`, in which a side is 2 long.
        """
        matrix = torch.eye(3).expand(count, 3, 3)
        if "b" in self.groups:
            matrix = matrix @ _pixel_blitting(count, side, generator)
        if "g" in self.groups:
            matrix = matrix @ _general_geometry(count, generator)
        return matrix[:, :2]


def _like(drawn: Tensor, images: Tensor) -> Tensor:
    """What was drawn on the CPU, with the device and the dtype of the images."""
    return to_device(drawn, images.device).to(images.dtype)


def _uniform(count: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    """(N,) draws in [low, high)."""
    return low + (high - low) * torch.rand(count, generator=generator)


def _normal(count: int, deviation: float, generator: torch.Generator | None) -> Tensor:
    """(N,) draws of N(0, deviation^2)."""
    return deviation * torch.randn(count, generator=generator)


def _linear(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(N, 3, 3) homogeneous maps of the 2x2 matrices [[a, b], [c, d]]."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, zero, c, d, zero, zero, zero, one], dim=-1).view(-1, 3, 3)


def _rotation(angle: Tensor) -> Tensor:
    """(N,) radians -> (N, 3, 3)."""
    return _linear(angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _translation(x: Tensor, y: Tensor) -> Tensor:
    """(N,) shifts along both axes -> (N, 3, 3)."""
    matrix = torch.eye(3).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _pixel_blitting(count: int, side: int, generator: torch.Generator | None) -> Tensor:
    """Flip, quarter turn and integer shift (N, 3, 3): they map samples onto samples, so resampling loses nothing."""
    flip = _uniform(count, 0, 1, generator).round() * 2 - 1
    quarters = _uniform(count, 0, 4, generator).floor()
    cos, sin = torch.cos(quarters * math.pi / 2).round(), torch.sin(quarters * math.pi / 2).round()
    max_shift = side // 8
    x, y = (_uniform(count, -max_shift, max_shift + 1, generator).floor() * (2 / side) for _ in range(2))
    one, zero = torch.ones(count), torch.zeros(count)
    return _linear(flip, zero, zero, one) @ _linear(cos, -sin, sin, cos) @ _translation(x, y)


def _general_geometry(count: int, generator: torch.Generator | None) -> Tensor:
    """Scale, rotation, anisotropic scale, rotation and fractional shift (N, 3, 3)."""
    zero = torch.zeros(count)
    scale = torch.exp2(_normal(count, 0.2, generator))
    stretch = torch.exp2(_normal(count, 0.2, generator))
    first, second = (_rotation(_uniform(count, -math.pi, math.pi, generator)) for _ in range(2))
    x, y = (2 * _normal(count, 1 / 8, generator) for _ in range(2))
    isotropic, anisotropic = _linear(scale, zero, zero, scale), _linear(stretch, zero, zero, 1 / stretch)
    return isotropic @ first @ anisotropic @ second @ _translation(x, y)


def colour_changes(count: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw the transforms of group c: (N, 3) brightness to add, factor of contrast, factor of saturation."""
    ranges = ((-0.5, 0.5), (0.5, 1.5), (0.0, 2.0))
    return torch.stack([_uniform(count, low, high, generator) for low, high in ranges], dim=1)


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """Apply brightness, then saturation about the channels' mean, then contrast about the mean of all values.

    Args:
        images: (N, C, H, W).
        changes: (N, 3), as drawn by `colour_changes`.

    Returns:
        (N, C, H, W).
    """
    brightness, contrast, saturation = changes[:, :, None, None, None].unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


def shared_noise(shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
    """Draw the noise of group n: (N, C, H, W) Gaussian, of standard deviation |N(0, 0.1)| for each sample."""
    deviation = _normal(shape[0], 0.1, generator).abs()[:, None, None, None]
    return deviation * torch.randn(shape, generator=generator)


def cutout_mask(count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """Draw the mask of group o: (N, 1, H, W), 0 in a square of half the side around a uniform centre, 1 elsewhere."""
    centre = torch.rand(2, count, 1, 1, 1, generator=generator)
    y = (torch.arange(size[0]).view(1, 1, -1, 1) + 0.5) / size[0]
    x = (torch.arange(size[1]).view(1, 1, 1, -1) + 0.5) / size[1]
    inside = ((y - centre[0]).abs() < 0.25) & ((x - centre[1]).abs() < 0.25)
    return 1.0 - inside.float()
