"""The conditioning of networks: token embeddings of the prompt, and what else a family's network takes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Conditioning(NamedTuple):
    """The conditioning of N images.

    text: (N, L, D) token embeddings.
    pooled: (N, P) pooled text embeddings: SDXL, SD3, FLUX.
    sizes: (N, 6) original size, crop position and target size in pixels, only SDXL.
    mask: (N, L) bool, false for padding, where the network must not attend to it: PixArt.
    guidance: (N,) float32, the guidance scale that a guidance-distilled network takes as an input: FLUX.1-dev.
    """

    text: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of a diffusers `UNet2DConditionModel`."""
        added = None if self.pooled is None else {"text_embeds": self.pooled, "time_ids": self.sizes}
        return {"encoder_hidden_states": self.text, "added_cond_kwargs": added}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """Apply `change`, such as a selection of rows, to every tensor."""
        return Conditioning(*(None if tensor is None else change(tensor) for tensor in self))

    @staticmethod
    def cat(conditionings: Sequence["Conditioning"]) -> "Conditioning":
        """Concatenate conditionings of the same model along the images."""
        columns = zip(*conditionings, strict=True)
        return Conditioning(*(None if tensors[0] is None else torch.cat(tensors) for tensors in columns))
