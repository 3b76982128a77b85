"""What the networks are told about an image: the text, and for SDXL its pooled embedding and the sizes."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Conditioning(NamedTuple):
    """text: (N, L, D) token embeddings.  pooled: (N, P), sizes: (N, 6), both of SDXL only."""

    text: Tensor
    pooled: Tensor | None = None
    sizes: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of a `UNet2DConditionModel`."""
        added = None if self.pooled is None else {"text_embeds": self.pooled, "time_ids": self.sizes}
        return {"encoder_hidden_states": self.text, "added_cond_kwargs": added}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Conditioning":
        """The same change of every tensor, such as a choice of rows."""
        return Conditioning(*(None if tensor is None else change(tensor) for tensor in self))

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """The rows of all parts, one after the other."""
        return Conditioning(
            *(None if tensors[0] is None else torch.cat(tensors) for tensors in zip(*parts, strict=True))
        )
