"""Mean and standard deviation of latents by channel: of those that weights were made for, and of others."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffgan.errors import UserError

# Tolerances for n latents, wide enough for single images: of a batch of glyphs none was off by as much.
# A forgotten scaling factor of Stable Diffusion (0.18) is 2.5 octaves.
MEAN = (0.5, 2.0)  # mean: a + b / sqrt(n) standard deviations
LARGER = (0.75, 1.0)  # standard deviation: octaves above
SMALLER = (1.0, 3.0)  # octaves below: an image of one colour has almost none


class LatentStatistics(NamedTuple):
    """mean, std: of every channel, over latents of the diffusion model."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, latents: Tensor) -> "LatentStatistics":
        """latents: (N, C, H, W)."""
        running = RunningStatistics()
        running.update(latents)
        return running.value()

    @classmethod
    def read(cls, text: str, channels: int, place: str) -> "LatentStatistics":
        """The inverse of `text`; raises UserError naming `place` for anything else."""
        try:
            content = json.loads(text)
            mean, std = (tuple(float(number) for number in content[name]) for name in ("mean", "std"))
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{place}: statistics: expected lists of numbers `mean` and `std`") from error
        if not len(mean) == len(std) == channels or not all(map(math.isfinite, mean)) or not min(std) > 0:
            raise UserError(f"{place}: statistics: expected a finite mean and a std above 0 for {channels} channels")
        return cls(mean, std)

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"mean": self.mean, "std": self.std})

    def resembles(self, other: "LatentStatistics", images: int) -> bool:
        """Whether `other`, of so many latents, may be of the same kind."""
        octaves = [math.log2(max(std, 1e-30) / own) for own, std in zip(self.std, other.std, strict=True)]
        shifts = [abs(mean - own) / std for own, mean, std in zip(self.mean, other.mean, self.std, strict=True)]
        scale = sum(octaves) / len(octaves)
        has_scale = -_tolerance(SMALLER, images) < scale < _tolerance(LARGER, images)
        return has_scale and max(shifts) < _tolerance(MEAN, images)

    def __str__(self) -> str:
        return f"mean {_rounded(self.mean)}, std {_rounded(self.std)}"


class RunningStatistics:
    """Statistics of latents that come in batches."""

    def __init__(self) -> None:
        self.values, self.sums = 0, None

    def update(self, latents: Tensor) -> None:
        """latents: (N, C, H, W), on any device."""
        dtype = torch.float32 if latents.device.type == "mps" else torch.float64  # which Apple's GPUs do not have
        by_channel = latents.detach().to(dtype).transpose(0, 1).flatten(1)  # (C, N H W)
        self.values += by_channel.shape[1]
        sums = torch.stack([by_channel.sum(1), by_channel.square().sum(1)])
        self.sums = sums if self.sums is None else self.sums + sums

    def value(self) -> LatentStatistics:
        """Of everything so far, which is at least one latent."""
        mean, square = self.sums / self.values
        return LatentStatistics(*(tuple(each.tolist()) for each in (mean, (square - mean**2).clamp_min(0).sqrt())))


def _tolerance(terms: tuple[float, float], images: int) -> float:
    return terms[0] + terms[1] / math.sqrt(images)


def _rounded(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:.2f}" for number in numbers)
