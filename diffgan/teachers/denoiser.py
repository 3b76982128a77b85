"""The denoising network of a family: how it is called, and which of its blocks are sharded and checkpointed.

The network itself stays an unchanged module of diffusers. An adapter, found by the network's class, says how to use
it; `Teacher.solve`, the one-step generator and the cost estimate call networks through their adapters only.

The adapter of UNets is here, that of each diffusion transformer in its family's file (`transformer.py` has what they
share). A family with a network of another class defines a subclass of `DenoiserAdapter` and registers it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers.guidance import CLASSIFIER_FREE_GUIDANCE

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")  # names in every network of diffusers
MAX_SIDE = 4096  # of a latent
NUM_SIZES = 6  # sizes and crop in the conditioning of SDXL


class DenoiserAdapter(ABC):
    """How to use the networks of one class. An adapter has no state: the network is an argument of every method.

    Attributes:
        network_class: the class in diffusers.
        component: name of the network in a pipeline of diffusers. Students keep it in the names of their weights.
    """

    network_class: ClassVar[type[nn.Module]]
    component: ClassVar[str]

    @abstractmethod
    def check(self, network: nn.Module) -> None:
        """Raise a UserError if the network requires more than a latent, a timestep and a prompt."""

    @abstractmethod
    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """(C, H, W) of one latent at the network's usual size, from its configuration."""

    @abstractmethod
    def check_size(self, config: Mapping[str, Any], height: int, width: int) -> None:
        """Raise a UserError if the network cannot compute latents of that height and width."""

    def latent_of_size(self, config: Mapping[str, Any], factor: int, height: int, width: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of images of another size than the network's usual one.

        Args:
            factor: side of an image divided by that of its latent.
            height, width: of images, in pixels.

        Raises:
            UserError: the network does not take that size.
        """
        if min(height, width) < 1 or height % factor or width % factor:
            raise UserError(f"size: {height}x{width} must be multiples of {factor}, the autoencoder's factor")
        if max(height, width) > MAX_SIDE * factor:
            raise UserError(f"size: {height}x{width} must be at most {MAX_SIDE * factor} on each side")
        try:
            self.check_size(config, height // factor, width // factor)
        except UserError as error:
            raise UserError(f"size: {height}x{width}: {error}") from error
        return self.latent_shape(config)[0], height // factor, width // factor

    def image_tokens(self, config: Mapping[str, Any], height: int, width: int) -> int:
        """Tokens of one latent of that height and width: its pixels, or patches of them."""
        return height * width

    def guidance_kind(self, config: Mapping[str, Any]) -> str:
        """How the network is guided, from its configuration: a constant of `diffgan.teachers.guidance`."""
        return CLASSIFIER_FREE_GUIDANCE

    @abstractmethod
    def empty_conditioning(self, config: Mapping[str, Any], tokens: int) -> Conditioning:
        """Uninitialised conditioning of one prompt of `tokens` tokens: its shapes, to estimate costs."""

    @abstractmethod
    def predict(self, network: nn.Module, latent: Tensor, t: Tensor | int, conditioning: Conditioning) -> Tensor:
        """Call the network.

        Args:
            network: of class `network_class`.
            latent: (N, C, H, W).
            t: timestep, () or (N,).
            conditioning: N rows.

        Returns:
            The network's output, (N, C, H, W); `diffgan.teachers.prediction` converts it to x0.
        """

    @abstractmethod
    def blocks(self, network: nn.Module) -> list[nn.Module]:
        """The blocks of the network in the order of the forward pass: the units of sharding (FSDP2)."""

    def lora_targets(self) -> tuple[str, ...]:
        """Ends of the names of the layers that get LoRA adapters by default: attention and feed-forward."""
        return ATTENTION

    def output_modules(self, network: nn.Module) -> list[nn.Module]:
        """The last block and the head, in whose rounding errors a low precision shows most.

        Raises:
            UserError: the adapter does not say which they are.
        """
        raise UserError(f"float32_output: is not supported for a {type(network).__name__}; leave it false")

    def enable_gradient_checkpointing(self, network: nn.Module) -> None:
        """Recompute the activations of every block in the backward pass instead of keeping them."""
        network.enable_gradient_checkpointing()


def check_multiple(unit: int, height: int, width: int) -> None:
    """Raise a UserError if the sides of a latent are not multiples of `unit`."""
    if height % unit or width % unit:
        raise UserError(f"a latent of {height}x{width} does not fit the network; both must be multiples of {unit}")


ADAPTERS: dict[type[nn.Module], DenoiserAdapter] = {}  # by network class


def register(adapter: type[DenoiserAdapter]) -> type[DenoiserAdapter]:
    """Class decorator: use this adapter for its `network_class`."""
    ADAPTERS[adapter.network_class] = adapter()
    return adapter


def adapter_for(network: nn.Module) -> DenoiserAdapter:
    """The adapter of a network.

    Raises:
        UserError: there is none for its class.
    """
    for network_class, adapter in ADAPTERS.items():
        if isinstance(network, network_class):
            return adapter
    known = " and ".join(network_class.__name__ for network_class in ADAPTERS)
    raise UserError(f"network: a {type(network).__name__} is not supported; supported are {known}")


@register
class UNetAdapter(DenoiserAdapter):
    """`UNet2DConditionModel`: Stable Diffusion 1.x, 2.x and XL."""

    network_class = UNet2DConditionModel
    component = "unet"

    def check(self, network: UNet2DConditionModel) -> None:
        config = network.config
        self.latent_shape(config)
        if config.in_channels != config.out_channels:
            raise UserError(
                f"unet: in_channels ({config.in_channels}) and out_channels ({config.out_channels}) must be equal"
            )
        if config.time_cond_proj_dim is not None:
            raise UserError("unet: guidance as an input of the network (time_cond_proj_dim) is not supported")
        if config.class_embed_type is not None or config.num_class_embeds is not None:
            raise UserError("unet: classes as an input of the network (class_embed_type) are not supported")

    def latent_shape(self, config: Mapping[str, Any]) -> tuple[int, int, int]:
        """As `DenoiserAdapter.latent_shape`; raises UserError if the configuration has no such side."""
        side = config["sample_size"]
        if type(side) is not int or not 1 <= side <= MAX_SIDE:
            raise UserError(f"unet: sample_size is {side!r} and must be an integer between 1 and {MAX_SIDE}")
        return config["in_channels"], side, side

    def check_size(self, config: Mapping[str, Any], height: int, width: int) -> None:
        check_multiple(2 ** (len(config["down_block_types"]) - 1), height, width)

    def empty_conditioning(self, config: Mapping[str, Any], tokens: int) -> Conditioning:
        text = torch.empty(1, tokens, config["cross_attention_dim"])  # (1, L, D)
        if config.get("addition_embed_type") != "text_time":
            return Conditioning(text)
        width = config["projection_class_embeddings_input_dim"] - NUM_SIZES * config["addition_time_embed_dim"]
        return Conditioning(text, pooled=torch.empty(1, width), sizes=torch.empty(1, NUM_SIZES))

    def predict(
        self, network: UNet2DConditionModel, latent: Tensor, t: Tensor | int, conditioning: Conditioning
    ) -> Tensor:
        return network(latent, t, **conditioning.arguments(), return_dict=False)[0]  # (N, C, H, W)

    def blocks(self, network: UNet2DConditionModel) -> list[nn.Module]:
        stages = (*network.down_blocks, network.mid_block, *network.up_blocks)
        return [stage for stage in stages if stage is not None]

    def lora_targets(self) -> tuple[str, ...]:
        """With the residual blocks: a UNet's convolutions change most in one-step training (Luo et al., 2311.05556)."""
        resnets = ("proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj")
        return (*ATTENTION, *resnets, "downsamplers.0.conv", "upsamplers.0.conv")

    def output_modules(self, network: UNet2DConditionModel) -> list[nn.Module]:
        modules = (network.up_blocks[-1], network.conv_norm_out, network.conv_out)
        return [module for module in modules if module is not None]


def check_text_width(network: UNet2DConditionModel, width: int) -> None:
    """Raise a UserError if a network takes text embeddings of another width."""
    wanted = network.config.cross_attention_dim
    if isinstance(wanted, int) and wanted != width:
        raise UserError(f"unet: cross_attention_dim is {wanted}, but the text embeddings are {width} wide")
