"""The conditional discriminator: a second copy of the teacher's network, read at every scale (paper, section 3.3)."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from diffgan.conditioning import Conditioning
from diffgan.errors import UserError
from diffgan.teachers import denoiser

PLACES = ("before", "skip", "after")  # of the joining of a skip
UP_BLOCKS = ("CrossAttnUpBlock2D", "UpBlock2D")


class ReadOut(NamedTuple):
    """scale: 0 is the coarsest.  place: one of `PLACES`.  logits: (N, 1, h, w), above zero means real."""

    scale: int
    place: str
    logits: Tensor


class MultiScaleDiscriminator(nn.Module):
    """D(x, z, c): maps of real/fake logits at every scale of a diffusion model's decoder (paper, section 3.3).

    The network is called at t = 0. With its zero-initialised parts untrained it computes the features of `unet`:

        input:    conv_in(x) + zero(z);  before every later stage of the encoder + zero(x resized)
        read-out: at every scale of the decoder, before its first skip is joined, on that skip, and after the stage

    Args:
        unet: the teacher's network; it is copied, not changed.
        from_teacher: begin with the teacher's weights, or else with the same network drawn at random.
        noise_conditioning: let D see the noise z that the student's sample was made of.
        multi_scale: resized latents at the input of every stage and read-outs at every scale and place; or else one
            read-out after the last stage.

    Raises:
        UserError: `unet` is no Stable Diffusion network (SD1.x, SD2.x, SDXL).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        from_teacher: bool = True,
        noise_conditioning: bool = True,
        multi_scale: bool = True,
    ):
        super().__init__()
        self.unet = _features_of(unet, from_teacher)
        self.multi_scale = multi_scale
        self.upsamplers = nn.ModuleList(_take_upsampler(block) for block in self.unet.up_blocks)
        channels, encoder_inputs = unet.config.in_channels, _encoder_inputs(self.unet)
        self.noise_in = _zero_conv(channels, encoder_inputs[0]) if noise_conditioning else None
        self.latent_in = nn.ModuleList(_zero_conv(channels, width) for width in encoder_inputs[1:] if multi_scale)
        self.heads = nn.ModuleDict(
            {
                _name(scale, place): _head(width, unet.config.norm_num_groups)
                for scale, widths in enumerate(_decoder_widths(self.unet))
                for place, width in zip(PLACES, widths, strict=True)
                if multi_scale or (scale == len(self.unet.up_blocks) - 1 and place == "after")
            }
        )
        self.requires_grad_(True).train()

    def blocks(self) -> list[nn.Module]:
        """Units of sharding."""
        return denoiser.blocks(self.unet)

    def enable_gradient_checkpointing(self) -> None:
        denoiser.enable_gradient_checkpointing(self.unet)

    def forward(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[ReadOut]:
        """latent, noise: (N, C, H, W) -> the read-outs, coarsest scale first."""
        features = self.features(latent, noise, conditioning)
        return [
            ReadOut(scale, place, self.heads[name](feature))
            for scale, places in enumerate(features)
            for place, feature in zip(PLACES, places, strict=True)
            if (name := _name(scale, place)) in self.heads
        ]

    def features(self, latent: Tensor, noise: Tensor, conditioning: Conditioning) -> list[tuple[Tensor, ...]]:
        """By scale of the decoder, coarsest first, the features before, at and after its skip: (N, width, h, w)."""
        embedding, text = self._embed(latent, conditioning)
        hidden = self.unet.conv_in(2 * latent - 1 if self.unet.config.center_input_sample else latent)
        if self.noise_in is not None:
            hidden = hidden + self.noise_in(noise)
        hidden, skips = self._encode(hidden, latent, embedding, text)
        if self.unet.mid_block is not None:
            hidden = self.unet.mid_block(hidden, embedding, **text(self.unet.mid_block))
        return self._decode(hidden, skips, embedding, text)

    def _embed(self, latent: Tensor, conditioning: Conditioning):
        """The embedding of t = 0 (and of SDXL's pooled text and sizes), and the text for the blocks that read it."""
        arguments = conditioning.arguments()
        embedding = self.unet.time_embedding(self.unet.get_time_embed(latent, torch.zeros((), device=latent.device)))
        added = self.unet.get_aug_embed(emb=embedding, **arguments)
        embedding = embedding if added is None else embedding + added
        if self.unet.time_embed_act is not None:
            embedding = self.unet.time_embed_act(embedding)
        tokens = self.unet.process_encoder_hidden_states(**arguments)

        def text(block: nn.Module) -> dict[str, Tensor]:
            return {"encoder_hidden_states": tokens} if getattr(block, "has_cross_attention", False) else {}

        return embedding, text

    def _encode(self, hidden: Tensor, latent: Tensor, embedding: Tensor, text) -> tuple[Tensor, list[Tensor]]:
        skips = [hidden]
        for stage, block in enumerate(self.unet.down_blocks):
            if stage > 0 and self.multi_scale:
                resized = F.adaptive_avg_pool2d(latent, hidden.shape[-2:])
                hidden = hidden + self.latent_in[stage - 1](resized)
            hidden, residuals = block(hidden, embedding, **text(block))
            skips.extend(residuals)
        return hidden, skips

    def _decode(self, hidden: Tensor, skips: list[Tensor], embedding: Tensor, text) -> list[tuple[Tensor, ...]]:
        scales = []
        for block, upsampler in zip(self.unet.up_blocks, self.upsamplers, strict=True):
            joined, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            before, hidden = hidden, block(hidden, tuple(joined), embedding, **text(block))
            scales.append((before, joined[-1], hidden))
            if skips:
                hidden = upsampler(hidden, skips[-1].shape[-2:])
        return scales


def _features_of(unet: UNet2DConditionModel, from_teacher: bool) -> UNet2DConditionModel:
    """A copy of the network without its output layers, with its weights or drawn anew."""
    if odd := [block for block in unet.config.up_block_types if block not in UP_BLOCKS]:
        raise UserError(
            f"discriminator: the teacher's network has a {odd[0]}; only {' and '.join(UP_BLOCKS)} are known"
        )
    copied = copy.deepcopy(unet) if from_teacher else type(unet).from_config(unet.config)
    copied.conv_norm_out = copied.conv_act = copied.conv_out = nn.Identity()
    return copied.to(unet.device)


def _take_upsampler(block: nn.Module) -> nn.Module:
    """The upsampler of a decoder stage, removed from it: the stage is read before it."""
    upsamplers, block.upsamplers = block.upsamplers, None
    return nn.Identity() if upsamplers is None else upsamplers[0]


def _encoder_inputs(unet: UNet2DConditionModel) -> list[int]:
    """Channels at the input of every stage of the encoder."""
    return [block.resnets[0].in_channels for block in unet.down_blocks]


def _decoder_widths(unet: UNet2DConditionModel) -> list[tuple[int, int, int]]:
    """Channels before, at and after the first skip of every stage of the decoder."""
    widths, before = [], unet.down_blocks[-1].resnets[-1].out_channels
    for block in unet.up_blocks:
        after = block.resnets[-1].out_channels
        widths.append((before, block.resnets[0].in_channels - before, after))
        before = after
    return widths


def _zero_conv(inputs: int, outputs: int) -> nn.Conv2d:
    """A convolution that begins as zero, so that what it adds begins as nothing."""
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


def _head(channels: int, groups: int) -> nn.Sequential:
    """Features -> one map of logits."""
    return nn.Sequential(nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv2d(channels, 1, 3, padding=1))


def _name(scale: int, place: str) -> str:
    return f"scale{scale}_{place}"
