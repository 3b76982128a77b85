"""Samplers: a pipeline and how it is called, from noises and prompts to images."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffgan.storage.digests import digest
from diffgan.teachers.registry import load_teacher, resolve_path


class Autoencoder(Protocol):
    """Images to latents and back: every sampler and teacher."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) in [-1, 1] -> latents (N, C, H / factor, W / factor)."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latents (N, C, H, W) -> images (N, 3, H * factor, W * factor), in about [-1, 1]."""


class Sampler(ABC):
    """Noises and prompts to images.

    Attributes:
        network_calls: calls of the denoising network for one image; with guidance a call of twice the rows is one.
    """

    network_calls: int

    @property
    @abstractmethod
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one latent."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The network's device."""

    @abstractmethod
    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move all networks to a device, and denoiser and text encoders to a dtype; the autoencoder keeps float32."""

    @abstractmethod
    def latents(self, noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        """Noise (N, C, H, W) on any device, and the seeds it was drawn from -> latents (N, C, H, W) on the device."""

    @abstractmethod
    def decode(self, latent: Tensor) -> Tensor:
        """As `Autoencoder.decode`."""

    @abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """As `Autoencoder.encode_images`."""

    @property
    @abstractmethod
    def pipeline(self) -> dict[str, Any]:
        """What was called, for records: name and digests."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How it was called, for records."""

    def images(self, noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        """Noise (N, C, H, W) on any device -> images (N, 3, H, W) in about [-1, 1] on the device."""
        return self.decode(self.latents(noise, prompts, seeds))


class TeacherSampler(Sampler):
    """A pipeline directory called by `Teacher.solve`: DDIM, timesteps spaced `trailing`, solver in float32.

    Args:
        path: directory, hub id or "glyphs".
        steps: of the solver.
        guidance: classifier-free guidance; 1 is none.
    """

    def __init__(self, path: str, steps: int, guidance: float):
        self.path, self.steps, self.guidance = path, steps, guidance
        self.teacher = load_teacher(path)
        self.network_calls = self.teacher.network_calls(steps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.teacher.latent_shape

    @property
    def device(self) -> torch.device:
        return self.teacher.device

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        for network in (self.teacher.denoiser, *self.teacher.text_encoders):
            network.to(dtype)
        self.teacher.to(device)

    def latents(self, noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        conditioning = self.teacher.encode(prompts)
        return self.teacher.solve(noise.to(self.device), conditioning, self.steps, self.guidance)

    def decode(self, latent: Tensor) -> Tensor:
        return self.teacher.decode(latent)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.teacher.encode_images(images)

    @cached_property
    def pipeline(self) -> dict[str, Any]:
        return {"name": self.path, "digest": pipeline_digest(self.path)}

    def settings(self) -> dict[str, Any]:
        return {"steps": self.steps, "guidance": self.guidance}


def pipeline_digest(path: str) -> str | None:
    """Digest of the weights in a pipeline directory; None for a hub id."""
    folder = Path(resolve_path(path))
    return digest(folder) if folder.is_dir() else None
