"""Text encoders in the two layouts of the original files: CLIP's own names, and those of open_clip."""

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from diffgan.teachers.original_layout.names import Rule, renamed

PREFIX = "text_model."  # versions of transformers from 5.6 omit it in a CLIPTextModel
BLOCK = r"encoder\.layers\.(\d+)\."
OPEN_CLIP: list[Rule] = [
    (r"embeddings\.token_embedding\.", "token_embedding."),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm\.", "ln_final."),
    (r"text_projection\.weight", "text_projection"),
    (rf"{BLOCK}layer_norm(1|2)\.", r"transformer.resblocks.\1.ln_\2."),
    (rf"{BLOCK}mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (rf"{BLOCK}mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (rf"{BLOCK}self_attn\.(q|k|v|out)_proj\.", r"transformer.resblocks.\1.attn.\2_proj."),
]


def clip_weights(encoder: CLIPTextModel) -> dict[str, Tensor]:
    """The weights of a text encoder by CLIP's names, which all begin with `text_model.`."""
    return {PREFIX + name.removeprefix(PREFIX): weight for name, weight in encoder.state_dict().items()}


def open_clip_weights(encoder: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """The weights of a text encoder by open_clip's names.

    Queries, keys and values of a block are one weight there, and the projection (D, P) is applied from the right.
    """
    weights = {name.removeprefix(PREFIX): weight for name, weight in encoder.state_dict().items()}
    named = renamed(weights, OPEN_CLIP, "text_encoder_2")
    named["text_projection"] = named["text_projection"].T
    for block in range(encoder.config.num_hidden_layers):
        attention = f"transformer.resblocks.{block}.attn"
        for kind in ("weight", "bias"):
            parts = [named.pop(f"{attention}.{part}_proj.{kind}") for part in "qkv"]
            named[f"{attention}.in_proj_{kind}"] = torch.cat(parts)
    return named
