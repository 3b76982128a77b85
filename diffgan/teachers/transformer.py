"""What the adapters of diffusion transformers share: their blocks, and the T5 text encoder."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.teachers.denoiser import ATTENTION, MAX_SIDE, DenoiserAdapter, adapter_for, check_multiple


class TransformerAdapter(DenoiserAdapter):
    """A transformer on patches of the latent, the component `transformer` of its pipeline."""

    component = "transformer"

    def check(self, network: nn.Module) -> None:
        side, patch = network.config.sample_size, network.config.patch_size
        if type(side) is not int or not 1 <= side <= MAX_SIDE or side % patch:
            bounds = f"a multiple of patch_size, {patch}, and at most {MAX_SIDE}"
            raise UserError(f"transformer: sample_size is {side!r} and must be {bounds}")

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        return config["in_channels"], config["sample_size"], config["sample_size"]

    def check_size(self, config: Mapping[str, Any], height: int, width: int) -> None:
        check_multiple(self.patch(config), height, width)

    def image_tokens(self, config: Mapping[str, Any], height: int, width: int) -> int:
        return height * width // self.patch(config) ** 2

    def patch(self, config: Mapping[str, Any]) -> int:
        """Side of a patch in pixels of the latent."""
        return config["patch_size"]

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        return list(network.transformer_blocks)

    def output_modules(self, network: nn.Module) -> list[nn.Module]:
        return [self.blocks(network)[-1], network.norm_out, network.proj_out]

    def lora_targets(self) -> tuple[str, ...]:
        """With the text's side of joint attention."""
        text = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
        return (*ATTENTION, *text, "proj_mlp")

    # ---- for a discriminator, which is made of a copy of the network ----

    def width(self, network: nn.Module) -> int:
        """Values of a token between the blocks."""
        return network.inner_dim

    def image_features(self, output: Tensor | tuple[Tensor, ...]) -> Tensor:
        """The image's tokens in a block's output, (N, T, width)."""
        return output[1] if isinstance(output, tuple) else output

    def widen_input(self, network: nn.Module) -> None:
        """Let the network take (N, 2 C, H, W): further channels of each patch, whose weights are zero at first."""
        network.pos_embed.proj = wider(network.pos_embed.proj)

    def remove_output(self, network: nn.Module) -> None:
        """Remove the layers after the last block, in place; the network's output then is zeros."""
        network.norm_out, network.proj_out = _FirstInput(), _Zeros(network.proj_out.out_features)


def check_text_widths(network: nn.Module, text: int, pooled: int | None = None) -> None:
    """Raise a UserError if a network takes embeddings of other widths than its text encoders return.

    Args:
        text: width of the text embeddings.
        pooled: that of the pooled embedding; None if there is none.
    """
    taken = adapter_for(network).empty_conditioning(network.config, 1)
    for name, tensor, width in (("text", taken.text, text), ("pooled text", taken.pooled, pooled)):
        if width is not None and tensor.shape[-1] != width:
            raise UserError(
                f"transformer: takes {name} embeddings of {tensor.shape[-1]} values, but those of the text encoders "
                f"have {width}"
            )


def wider(layer: nn.Conv2d | nn.Linear) -> nn.Conv2d | nn.Linear:
    """The layer with twice the input channels; the weights of the new ones are zero.

    Of a layer with LoRA adapters it is the layer without: the wider one is trained as a whole.
    """
    layer = getattr(layer, "base_layer", layer)  # peft's
    if isinstance(layer, nn.Linear):
        wide = nn.Linear(2 * layer.in_features, layer.out_features, layer.bias is not None)
    else:
        sizes = (layer.out_channels, layer.kernel_size, layer.stride)
        wide = nn.Conv2d(2 * layer.in_channels, *sizes, bias=layer.bias is not None)
    weight = layer.weight.detach()
    wide.weight = nn.Parameter(torch.cat([weight, torch.zeros_like(weight)], dim=1))
    wide.bias = layer.bias
    return wide


class _FirstInput(nn.Module):
    def forward(self, hidden: Tensor, *_: Tensor) -> Tensor:
        return hidden


class _Zeros(nn.Module):
    """(N, T, width) -> zeros (N, T, features)."""

    def __init__(self, features: int):
        super().__init__()
        self.features = features

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.new_zeros(*hidden.shape[:-1], self.features)


def rows_of(t: Tensor | int, latent: Tensor) -> Tensor:
    """A timestep, a number, () or (N,), as (N,) on the device of `latent`, (N, ...)."""
    if not isinstance(t, Tensor):
        t = torch.full((), t, device=latent.device)
    return t.expand(len(latent))
