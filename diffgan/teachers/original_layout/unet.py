"""The UNet of SD1.x, SD2.x and SDXL in the original layout.

Input and output blocks are numbered through all scales. An input block is one residual block with the attention after
it, or a downsampling convolution; an output block may end with the upsampling convolution.
"""

import re

from diffusers import UNet2DConditionModel
from torch import Tensor

from diffgan.errors import UserError
from diffgan.teachers.original_layout.names import Rule, inner_name, renamed

RESIDUAL_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UNetMidBlock2DCrossAttn", "UpBlock2D", "CrossAttnUpBlock2D"}
LAYER = r"(resnets|attentions)\.(\d+)\.(.+)"
MID_BLOCKS = {("resnets", 0): 0, ("attentions", 0): 1, ("resnets", 1): 2}
MODULE = {"resnets": 0, "attentions": 1}  # position in an input or output block


def unet_weights(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The weights of a UNet, without the prefix of the file.

    Raises:
        UserError: the layout has no place for a weight, for a kind of block, or for blocks of different depths.
    """
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        if (kind := type(block).__name__) not in BLOCKS:
            raise UserError(f"unet: a {kind} has no place in the original layout; export without --single_file")
    layers = unet.config.layers_per_block
    if not isinstance(layers, int):
        raise UserError("unet: blocks of different depths have no original layout; export without --single_file")
    return renamed(unet.state_dict(), _rules(unet, layers), "unet")


def _rules(unet: UNet2DConditionModel, layers: int) -> list[Rule]:
    with_attention = [bool(getattr(block, "attentions", None)) for block in unet.up_blocks]
    length = layers + 1  # input blocks of a scale: its residual blocks, then the downsampling; output blocks as many

    def down(match: re.Match[str]) -> str:
        block, kind, layer, name = match.groups()
        return f"input_blocks.{1 + int(block) * length + int(layer)}.{MODULE[kind]}.{_in_layer(kind, name)}"

    def downsampling(match: re.Match[str]) -> str:
        return f"input_blocks.{1 + int(match[1]) * length + layers}.0.op."

    def mid(match: re.Match[str]) -> str:
        kind, layer, name = match.groups()
        position = MID_BLOCKS.get((kind, int(layer)))
        if position is None:
            raise UserError("unet: a middle of more than three layers has no original layout; omit --single_file")
        return f"middle_block.{position}.{_in_layer(kind, name)}"

    def up(match: re.Match[str]) -> str:
        block, kind, layer, name = match.groups()
        return f"output_blocks.{int(block) * length + int(layer)}.{MODULE[kind]}.{_in_layer(kind, name)}"

    def upsampling(match: re.Match[str]) -> str:
        block = int(match[1])
        return f"output_blocks.{block * length + layers}.{2 if with_attention[block] else 1}.conv."

    return [
        (r"time_embedding\.linear_1\.", "time_embed.0."),
        (r"time_embedding\.linear_2\.", "time_embed.2."),
        (r"add_embedding\.linear_1\.", "label_emb.0.0."),
        (r"add_embedding\.linear_2\.", "label_emb.0.2."),
        (r"conv_in\.", "input_blocks.0.0."),
        (r"conv_norm_out\.", "out.0."),
        (r"conv_out\.", "out.2."),
        (rf"down_blocks\.(\d+)\.{LAYER}", down),
        (r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.", downsampling),
        (rf"mid_block\.{LAYER}", mid),
        (rf"up_blocks\.(\d+)\.{LAYER}", up),
        (r"up_blocks\.(\d+)\.upsamplers\.0\.conv\.", upsampling),
    ]


def _in_layer(kind: str, name: str) -> str:
    """Name inside a residual block; inside an attention block the layouts agree."""
    return inner_name(name, RESIDUAL_BLOCK) if kind == "resnets" else name
