"""The autoencoder of SD1.x, SD2.x and SDXL in the original layout.

The decoder's scales are numbered from the finest, and the linear layers of the attention are 1x1 convolutions.
"""

import re

from diffusers import AutoencoderKL
from torch import Tensor

from diffgan.errors import UserError
from diffgan.teachers.original_layout.names import Rule, inner_name, renamed

RESIDUAL_BLOCK = {"conv_shortcut": "nin_shortcut"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
CONVOLUTION = re.compile(r"(encoder|decoder)\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


def autoencoder_weights(vae: AutoencoderKL) -> dict[str, Tensor]:
    """The weights of an autoencoder, without the prefix of the file.

    Raises:
        UserError: the layout has no place for a weight, or the middle has no attention.
    """
    if not vae.config.mid_block_add_attention:
        raise UserError("vae: has no attention in the middle, as the original layout has; omit --single_file")
    weights = renamed(vae.state_dict(), _rules(len(vae.config.up_block_types)), "vae")
    return {name: weight[:, :, None, None] if _becomes_2d(name, weight) else weight for name, weight in weights.items()}


def _becomes_2d(name: str, weight: Tensor) -> bool:
    return weight.ndim == 2 and CONVOLUTION.fullmatch(name) is not None


def _rules(scales: int) -> list[Rule]:
    def up(match: re.Match[str]) -> str:
        return f"decoder.up.{scales - 1 - int(match[1])}.block.{match[2]}.{inner_name(match[3], RESIDUAL_BLOCK)}"

    return [
        (
            r"encoder\.down_blocks\.(\d+)\.resnets\.(\d+)\.(.+)",
            lambda m: f"encoder.down.{m[1]}.block.{m[2]}.{inner_name(m[3], RESIDUAL_BLOCK)}",
        ),
        (r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample."),
        (r"decoder\.up_blocks\.(\d+)\.resnets\.(\d+)\.(.+)", up),
        (r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"decoder.up.{scales - 1 - int(m[1])}.upsample."),
        (
            r"(encoder|decoder)\.mid_block\.resnets\.(\d+)\.(.+)",
            lambda m: f"{m[1]}.mid.block_{int(m[2]) + 1}.{inner_name(m[3], RESIDUAL_BLOCK)}",
        ),
        (
            r"(encoder|decoder)\.mid_block\.attentions\.0\.(.+)",
            lambda m: f"{m[1]}.mid.attn_1.{inner_name(m[2], ATTENTION)}",
        ),
        (r"(encoder|decoder)\.conv_norm_out\.", r"\1.norm_out."),
        (r"(?=(encoder|decoder)\.conv_(in|out)\.|(post_)?quant_conv\.)", ""),  # the same name
    ]
