"""What a feature extractor is."""

from typing import Any, Protocol

import torch
from torch import Tensor

# Names of the only features with which a metric has the name that is known for it.
FID_FEATURES = "inception"  # FID
CMMD_FEATURES = "clip"  # CMMD
DREAMSIM_FEATURES = "dreamsim"  # DreamSim-N, DreamDiv


class FeatureExtractor(Protocol):
    """A frozen network whose features distances are computed of.

    name: part of the metrics' keys.  identity: weights, resizing and side, for digests and caches.
    """

    name: str
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> features (N, D) float32."""

    def to(self, device: torch.device | str) -> Any:
        """Move the network to a device."""
