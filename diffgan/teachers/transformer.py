"""What the adapters of diffusion transformers share: their blocks, and the T5 text encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.teachers.denoiser import DenoiserAdapter


class TransformerAdapter(DenoiserAdapter):
    """A transformer on patches of the latent, the component `transformer` of its pipeline."""

    component = "transformer"

    def check(self, network: nn.Module) -> None:
        side, patch = network.config.sample_size, network.config.patch_size
        if not isinstance(side, int) or side < 1 or side % patch:
            raise UserError(f"transformer: sample_size is {side!r} and must be a multiple of patch_size, {patch}")

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def image_tokens(self, config: Mapping[str, Any]) -> int:
        _, height, width = self.latent_shape(config)
        return height * width // self.patch(config) ** 2

    def patch(self, config: Mapping[str, Any]) -> int:
        """Side of a patch in pixels of the latent."""
        return config["patch_size"]

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def output_modules(self, network: nn.Module) -> list[nn.Module]:
        return [self.blocks(network)[-1], network.norm_out, network.proj_out]


def rows_of(t: Tensor | int, latent: Tensor) -> Tensor:
    """A timestep, a number, () or (N,), as (N,) on the device of `latent`, (N, ...)."""
    if not isinstance(t, Tensor):
        t = torch.full((), t, device=latent.device)
    return t.expand(len(latent))
