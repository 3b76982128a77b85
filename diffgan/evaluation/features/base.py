"""What a feature extractor is."""

from typing import Protocol

from torch import Tensor


class FeatureExtractor(Protocol):
    """name: what the metrics are called after.  identity: weights, resize and side, for digests and caches."""

    name: str
    identity: str

    def __call__(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) uint8 -> features (N, D) float32."""
