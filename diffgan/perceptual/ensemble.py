"""The ensemble of E-LatentLPIPS: one random transform a sample, the same for both inputs (paper, section 3.2)."""

import math

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.perceptual.resample import resample

GROUPS = "bgcno"
DEFAULT = "bgo"


class Ensemble(nn.Module):
    """Random differentiable transforms of pairs of latents; every transform of a chosen group is drawn every time.

    b: horizontal flip, quarter turns, integer shift up to 1/8 of the side.
    g: isotropic scale 2^N(0, 0.2), rotation on the whole circle before and after the anisotropic scale 2^N(0, 0.2),
       fractional shift N(0, 1/8) of the side.
    c: brightness + U(-0.5, 0.5), contrast x U(0.5, 1.5) about the mean, saturation x U(0, 2) about the channels' mean.
    n: the same Gaussian noise on both, its deviation |N(0, 0.1)|.
    o: cutout of a square of half the side.
    The geometric ones compose to one affine map and one bilinear resampling, with reflection at the border.
    (Ranges of b, g, n and o: ADA, Karras et al. 2020; of c: DiffAugment, Zhao et al. 2020; as E-LatentLPIPS has them.)

    Args:
        groups: letters of the groups in use, e.g. "bgo"; "" changes nothing.
    """

    def __init__(self, groups: str = DEFAULT):
        super().__init__()
        if unknown := set(groups) - set(GROUPS):
            raise UserError(f"ensemble group {sorted(unknown)[0]!r} is none of {', '.join(GROUPS)}")
        self.groups = groups

    def forward(self, first: Tensor, second: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Two inputs (N, C, H, W) -> the same transform of both, another one for each of the N samples.

        Positions do not bear bfloat16, so autocast ends here.
        """
        with torch.autocast(first.device.type, enabled=False):
            return self._transformed(first, second, generator)

    def _transformed(self, first: Tensor, second: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        both = torch.cat([first, second], dim=1)  # (N, 2C, H, W)
        if set(self.groups) & set("bg"):
            both = resample(both, self._affine(len(both), both.shape[-1], generator).to(both.device))
        if "c" in self.groups:
            changes = colour_changes(len(both), generator).to(both)
            both = torch.cat([change_colours(one, changes) for one in both.chunk(2, dim=1)], dim=1)
        if "n" in self.groups:
            noise = shared_noise(first.shape, generator).to(both)
            both = both + torch.cat([noise, noise], dim=1)
        if "o" in self.groups:
            both = both * cutout_mask(len(both), both.shape[-2:], generator).to(both)
        return both.chunk(2, dim=1)

    def _affine(self, count: int, side: int, generator: torch.Generator | None) -> Tensor:
        """(N, 2, 3) maps in the coordinates of `affine_grid`, where the side is 2 long."""
        matrix = torch.eye(3).expand(count, 3, 3)
        if "b" in self.groups:
            matrix = matrix @ _blit(count, side, generator)
        if "g" in self.groups:
            matrix = matrix @ _geometry(count, generator)
        return matrix[:, :2]


def _uniform(count: int, low: float, high: float, generator: torch.Generator | None) -> Tensor:
    return low + (high - low) * torch.rand(count, generator=generator)


def _normal(count: int, deviation: float, generator: torch.Generator | None) -> Tensor:
    return deviation * torch.randn(count, generator=generator)


def _linear(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """(N, 3, 3) homogeneous maps of the 2x2 matrices [[a, b], [c, d]]."""
    zero, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, zero, c, d, zero, zero, zero, one], dim=-1).view(-1, 3, 3)


def _rotation(angle: Tensor) -> Tensor:
    return _linear(angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def _shift(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.eye(3).repeat(len(x), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = x, y
    return matrix


def _blit(count: int, side: int, generator: torch.Generator | None) -> Tensor:
    """Flip, quarter turn and integer shift: these move samples onto samples, without resampling loss."""
    flip = _uniform(count, 0, 1, generator).round() * 2 - 1
    quarters = _uniform(count, 0, 4, generator).floor()
    turn = torch.stack([torch.cos(quarters * math.pi / 2), torch.sin(quarters * math.pi / 2)]).round()
    reach = side // 8
    shift = [_uniform(count, -reach, reach + 1, generator).floor() * (2 / side) for _ in range(2)]
    one, zero = torch.ones(count), torch.zeros(count)
    return _linear(flip, zero, zero, one) @ _linear(turn[0], -turn[1], turn[1], turn[0]) @ _shift(*shift)


def _geometry(count: int, generator: torch.Generator | None) -> Tensor:
    """Scale, rotation, anisotropic scale, rotation, fractional shift."""
    zero = torch.zeros(count)
    scale = torch.exp2(_normal(count, 0.2, generator))
    stretch = torch.exp2(_normal(count, 0.2, generator))
    before, after = (_rotation(_uniform(count, -math.pi, math.pi, generator)) for _ in range(2))
    shift = [2 * _normal(count, 1 / 8, generator) for _ in range(2)]
    return (
        _linear(scale, zero, zero, scale) @ before @ _linear(stretch, zero, zero, 1 / stretch) @ after @ _shift(*shift)
    )


def colour_changes(count: int, generator: torch.Generator | None = None) -> Tensor:
    """(N, 3) brightness that is added, factors of contrast and of saturation."""
    ranges = ((-0.5, 0.5), (0.5, 1.5), (0.0, 2.0))
    return torch.stack([_uniform(count, low, high, generator) for low, high in ranges], dim=1)


def change_colours(images: Tensor, changes: Tensor) -> Tensor:
    """images: (N, C, H, W), changes: (N, 3) as `colour_changes` draws them -> (N, C, H, W)."""
    brightness, contrast, saturation = changes[:, :, None, None, None].unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + saturation * (images - grey)
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (images - mean)


def shared_noise(shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
    """(N, C, H, W) Gaussian noise, its deviation |N(0, 0.1)| for each sample."""
    deviation = _normal(shape[0], 0.1, generator).abs()[:, None, None, None]
    return deviation * torch.randn(shape, generator=generator)


def cutout_mask(count: int, size: tuple[int, int], generator: torch.Generator | None = None) -> Tensor:
    """(N, 1, H, W) of 1, with 0 in a square of half the side around a uniform centre."""
    centre = torch.rand(2, count, 1, 1, 1, generator=generator)
    y = (torch.arange(size[0]).view(1, 1, -1, 1) + 0.5) / size[0]
    x = (torch.arange(size[1]).view(1, 1, 1, -1) + 0.5) / size[1]
    inside = ((y - centre[0]).abs() < 0.25) & ((x - centre[1]).abs() < 0.25)
    return 1.0 - inside.float()
