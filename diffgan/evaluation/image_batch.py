"""A batch of images on its way to the metrics."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.grain import GENERATED_SEED, PLAIN, View, with_grain


@dataclass
class ImageBatch:
    """Images of a protocol's rows, whose features are computed once for all metrics.

    rows: N row numbers of the protocol.
    images: (N, 3, H, W) uint8 on the CPU.
    prompts: N captions.
    extractor: features of the distances.
    device: where networks compute.
    """

    rows: list[int]
    images: Tensor
    prompts: list[str]
    extractor: FeatureExtractor
    device: torch.device | str = "cpu"
    _features: dict[View, Tensor] = field(default_factory=dict, init=False, repr=False)

    def features(self, view: View = PLAIN) -> Tensor:
        """Features of the images as seen in a view: (N, D) float32 on the CPU."""
        if view not in self._features:
            images = with_grain(self.images, view.grain, [GENERATED_SEED + row for row in self.rows])
            self._features[view] = self.extractor(images.to(self.device)).cpu()
        return self._features[view]
