"""The sampler of a row: a pipeline of diffusers, called by its own `__call__`."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from torch import Tensor, nn

from diffgan.evaluation.row_components import (
    UNET,
    load_pipeline,
    merge_lora,
    networks,
    planned_calls,
    row_files,
    scheduler_of,
)
from diffgan.evaluation.rows import Row
from diffgan.evaluation.samplers import Sampler, pipeline_digest
from diffgan.latent_space import LatentSpace
from diffgan.storage.digests import digest
from diffgan.teachers.autoencoders import check_decoder_settings
from diffgan.teachers.denoiser import UNetAdapter
from diffgan.teachers.registry import exported_size, resolve_path
from diffgan.teachers.stable_diffusion_xl import StableDiffusionXL


class PipelineSampler(Sampler):
    """A pipeline of diffusers, as a row says it is called.

    The pipeline is given the noises, one generator for each image, and the row's settings; its latents are decoded
    here, in float32. An image's generator continues from where its noise was drawn, so that the image is that of
    `pipeline(prompt, generator=torch.Generator().manual_seed(seed))`. What a scheduler adds at its steps depends on the
    seed alone, not on the place in the batch or on the number of processes.

    Args:
        row: the row.

    Raises:
        UserError: a file is missing or of another architecture, or the pipeline cannot be called in this way.
    """

    def __init__(self, row: Row):
        self.row, self._files = row, row_files(row)
        self._pipeline = load_pipeline(row, resolve_path(row.pipeline), self._files.get(UNET))
        self._pipeline.set_progress_bar_config(disable=True)
        self._pipeline.scheduler = scheduler_of(row, self._pipeline.scheduler)
        if row.lora is not None:
            merge_lora(self._pipeline, row.lora, self._files["lora"])
        for network in networks(self._pipeline):
            network.requires_grad_(False).eval()
        for network in (self._unet, self._pipeline.vae):
            network.to(memory_format=torch.channels_last)
        self._space = LatentSpace.of(self._pipeline.vae)
        is_xl = isinstance(self._pipeline, StableDiffusionXL.pipeline_class)
        used = StableDiffusionXL.decoder_settings if is_xl else ()
        check_decoder_settings(self._space, type(self._pipeline).__name__, used)
        self._size = exported_size(resolve_path(row.pipeline))
        self.network_calls, self._calls = planned_calls(row, self._pipeline.scheduler), 0
        self._unet.register_forward_hook(self._count)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        if self._size is None:
            return UNetAdapter().latent_shape(self._unet.config)
        return UNetAdapter().latent_of_size(self._unet.config, self._space.factor, *self._size)

    @property
    def device(self) -> torch.device:
        return self._unet.device

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        for network in networks(self._pipeline):
            network.to(device, torch.float32 if network is self._pipeline.vae else dtype)

    @torch.no_grad()
    def latents(self, noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        row, self._calls = self.row, 0
        steps = {"timesteps": row.timesteps} if row.timesteps else {"num_inference_steps": row.steps}
        height, width = (side * self._space.factor for side in noise.shape[2:])
        result = self._pipeline(
            prompt=prompts,
            latents=noise.to(self.device, self._unet.dtype),
            generator=[_after_noise(seed, noise.shape[1:]) for seed in seeds],
            guidance_scale=row.guidance,
            output_type="latent",
            height=height,
            width=width,
            **steps,
            **row.call,
        )
        self.network_calls = self._calls
        return result.images.float()

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        return self._pipeline.vae.decode(self._space.to_autoencoder(latent), return_dict=False)[0]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        inputs = images.to(self.device, memory_format=torch.channels_last)
        return self._space.to_model(self._pipeline.vae.encode(inputs).latent_dist.mode())

    @cached_property
    def pipeline(self) -> dict[str, Any]:
        description = {"name": self.row.pipeline, "digest": pipeline_digest(self.row.pipeline)}
        if (revision := _revision(self.row.pipeline)) is not None:
            description["revision"] = revision
        return description | {name: {"digest": digest(path)} for name, path in self._files.items()}

    def settings(self) -> dict[str, Any]:
        return self.row.settings()

    @property
    def _unet(self) -> nn.Module:
        return getattr(self._pipeline, UNET)

    def _count(self, *_: Any) -> None:
        self._calls += 1


def _after_noise(seed: int, shape: torch.Size) -> torch.Generator:
    """The generator of `draw_noise` after it has drawn the noise of this seed."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(shape, generator=generator)
    return generator


def _revision(path: str) -> str | None:
    """The commit of a hub id in the local cache; None for directories."""
    if Path(resolve_path(path)).is_dir():
        return None
    cached = try_to_load_from_cache(path, "model_index.json")
    return Path(cached).parent.name if isinstance(cached, str) else None
