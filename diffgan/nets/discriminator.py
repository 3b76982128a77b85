"""The conditional discriminator: a second copy of the teacher's network, read at every scale (paper, section 3.3).

For UNets; `transformer_discriminator.py` has that of diffusion transformers. A configuration names the class.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.nets.lora import LoRA, copied_network, freeze_shared
from diffgan.nets.read_outs import Discriminator, ReadOut
from diffgan.teachers.denoiser import UNetAdapter

PLACES = ("before", "skip", "after")  # where a decoder stage is read: see `MultiScaleDiscriminator`
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


class BlockInputs(NamedTuple):
    """What the blocks of a UNet take beside features.

    Attributes:
        embedding: of the timestep (and of SDXL's pooled text and sizes), (N, E).
        text: token embeddings, (N, L, D).
    """

    embedding: Tensor
    text: Tensor

    def arguments(self, block: nn.Module) -> dict[str, Tensor]:
        """Keyword arguments of one block: the text, if it has cross-attention."""
        return {"encoder_hidden_states": self.text} if getattr(block, "has_cross_attention", False) else {}


class MultiScaleDiscriminator(Discriminator):
    """D(x, z, c): maps of real/fake logits at every scale of a diffusion UNet's decoder (paper, section 3.3).

    The network is called at t = 0. As long as its zero-initialised layers are zero, it computes the features of `unet`:

        input:    conv_in(x) + zero(z);  before every later stage of the encoder + zero(x resized)
        read-out: at every stage of the decoder, before its first skip is joined, on that skip, and after the stage

    Args:
        unet: the teacher's network; it is copied, not changed.
        from_teacher: initialise with the teacher's weights if true, with random weights if false.
        noise_conditioning: condition D on the noise z that the generated sample was made of.
        lora: train adapters beside the network's weights, which are shared with `unet`, and the layers that are added.
        multi_scale: add the resized latents at the input of every stage and read at every scale and place; if false,
            read once, after the last stage.

    Raises:
        UserError: `unet` is not a Stable Diffusion network (SD1.x, SD2.x, SDXL).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        from_teacher: bool = True,
        noise_conditioning: bool = True,
        multi_scale: bool = True,
        lora: LoRA | None = None,
    ):
        super().__init__()
        self.adapter = UNetAdapter()
        self.unet = _copy_without_output(unet, from_teacher, lora)
        self.multi_scale = multi_scale
        self.upsamplers = nn.ModuleList(_take_upsampler(block) for block in self.unet.up_blocks)
        channels, encoder_inputs = unet.config.in_channels, _encoder_inputs(self.unet)
        self.noise_in = _zero_conv(channels, encoder_inputs[0]) if noise_conditioning else None
        self.latent_in = nn.ModuleList(_zero_conv(channels, width) for width in encoder_inputs[1:] if multi_scale)
        self.heads = self._build_heads(unet.config.norm_num_groups)
        freeze_shared(self, unet)
        self.train()

    def _build_heads(self, groups: int) -> nn.ModuleDict:
        """One read-out head for each scale and place; one after the last stage if not `multi_scale`."""
        heads = nn.ModuleDict()
        last = len(self.unet.up_blocks) - 1
        for scale, widths in enumerate(_decoder_widths(self.unet)):
            for place, width in zip(PLACES, widths, strict=True):
                if self.multi_scale or (scale == last and place == "after"):
                    heads[_head_name(scale, place)] = _head(width, groups)
        return heads

    @property
    def sees_noise(self) -> bool:
        return self.noise_in is not None

    def blocks(self) -> list[nn.Module]:
        return self.adapter.blocks(self.unet)

    def enable_gradient_checkpointing(self) -> None:
        self.adapter.enable_gradient_checkpointing(self.unet)

    def forward(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[ReadOut]:
        """Score latents as real or fake.

        Args:
            latent: x, (N, C, H, W).
            noise: z, (N, C, H, W); ignored without noise conditioning.
            conditioning: c, N rows.

        Returns:
            The read-outs, coarsest scale first.
        """
        read_outs = []
        for scale, features in enumerate(self.features(latent, noise, conditioning)):
            for place, feature in zip(PLACES, features, strict=True):
                name = _head_name(scale, place)
                if name in self.heads:
                    read_outs.append(ReadOut(scale, place, self.heads[name](feature)))  # (N, 1, h, w)
        return read_outs

    def features(
        self, latent: Tensor, noise: Tensor, conditioning: Conditioning
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Features of the decoder; arguments as in `forward`.

        Returns:
            For each stage, coarsest first, the features at each of `PLACES`: (N, width, h, w).
        """
        inputs = self._block_inputs(latent, conditioning)
        centered = 2 * latent - 1 if self.unet.config.center_input_sample else latent
        hidden = self.unet.conv_in(centered)  # (N, width, H, W)
        if self.noise_in is not None:
            hidden = hidden + self.noise_in(noise)
        hidden, skips = self._encode(hidden, latent, inputs)
        if self.unet.mid_block is not None:
            hidden = self.unet.mid_block(hidden, inputs.embedding, **inputs.arguments(self.unet.mid_block))
        return self._decode(hidden, skips, inputs)

    def _block_inputs(self, latent: Tensor, conditioning: Conditioning) -> BlockInputs:
        """The embedding of t = 0 (and of SDXL's pooled text and sizes), and the text."""
        unet, arguments = self.unet, conditioning.arguments()
        timestep = torch.zeros((), device=latent.device)
        embedding = unet.time_embedding(unet.get_time_embed(latent, timestep))  # (N, E)
        added = unet.get_aug_embed(emb=embedding, **arguments)  # (N, E) or None
        if added is not None:
            embedding = embedding + added
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        return BlockInputs(embedding, unet.process_encoder_hidden_states(**arguments))

    def _encode(self, hidden: Tensor, latent: Tensor, inputs: BlockInputs) -> tuple[Tensor, list[Tensor]]:
        """The encoder: features of the coarsest scale, and the skips, finest first."""
        skips = [hidden]
        for stage, block in enumerate(self.unet.down_blocks):
            if stage > 0 and self.multi_scale:
                resized = F.adaptive_avg_pool2d(latent, hidden.shape[-2:])  # (N, C, h, w)
                hidden = hidden + self.latent_in[stage - 1](resized)  # (N, width, h, w)
            hidden, residuals = block(hidden, inputs.embedding, **inputs.arguments(block))  # (N, width, h/2, w/2)
            skips.extend(residuals)
        return hidden, skips

    def _decode(self, hidden: Tensor, skips: list[Tensor], inputs: BlockInputs) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The decoder: for each stage, coarsest first, the features at each of `PLACES`."""
        features = []
        for block, upsampler in zip(self.unet.up_blocks, self.upsamplers, strict=True):
            count = len(block.resnets)  # each joins one skip, the last one first
            joined, skips = skips[-count:], skips[:-count]
            before = hidden  # (N, width, h, w)
            hidden = block(hidden, tuple(joined), inputs.embedding, **inputs.arguments(block))  # (N, width, h, w)
            features.append((before, joined[-1], hidden))
            if skips:
                hidden = upsampler(hidden, skips[-1].shape[-2:])  # (N, width, 2 h, 2 w)
        return features


def _copy_without_output(unet: UNet2DConditionModel, from_teacher: bool, lora: LoRA | None) -> UNet2DConditionModel:
    """A copy of the network without its output layers: with its weights, with random ones, or sharing them."""
    if not isinstance(unet, UNet2DConditionModel):
        name = type(unet).__name__
        raise UserError(
            f"discriminator: the teacher's network is a {name}, MultiScaleDiscriminator takes a UNet2DConditionModel; "
            "for a transformer name TransformerDiscriminator"
        )
    for block in unet.config.up_block_types:
        if block not in UP_BLOCKS:
            supported = " and ".join(UP_BLOCKS)
            raise UserError(f"discriminator: the teacher's network has a {block}; only {supported} are supported")
    copied = copied_network(unet, from_teacher, lora)
    copied.conv_norm_out = copied.conv_act = copied.conv_out = nn.Identity()
    return copied.to(unet.device)


def _take_upsampler(block: nn.Module) -> nn.Module:
    """Remove the upsampler of a decoder stage and return it: the stage is read before it."""
    upsamplers, block.upsamplers = block.upsamplers, None
    return nn.Identity() if upsamplers is None else upsamplers[0]


def _encoder_inputs(unet: UNet2DConditionModel) -> list[int]:
    """Channels at the input of every stage of the encoder."""
    return [block.resnets[0].in_channels for block in unet.down_blocks]


def _decoder_widths(unet: UNet2DConditionModel) -> list[tuple[int, int, int]]:
    """Channels at each of `PLACES` for every stage of the decoder."""
    widths = []
    before = unet.down_blocks[-1].resnets[-1].out_channels
    for block in unet.up_blocks:
        skip = block.resnets[0].in_channels - before
        after = block.resnets[-1].out_channels
        widths.append((before, skip, after))
        before = after
    return widths


def _zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that is initialised to zero, so that at first it adds nothing."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _head(channels: int, groups: int) -> nn.Sequential:
    """Features (N, channels, h, w) -> logits (N, 1, h, w)."""
    return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))


def _head_name(scale: int, place: str) -> str:
    return f"scale{scale}_{place}"
