"""A batch of images on its way to the metrics."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.features.registry import Extractors
from diffgan.evaluation.grain import GENERATED_SEED, PLAIN, View, with_grain
from diffgan.evaluation.preprocessing import center_patch


@dataclass
class ImageBatch:
    """Images of a protocol's rows, whose features are computed once for all metrics.

    rows: N row numbers of the protocol.
    images: (N, 3, H, W) uint8 on the CPU, as the protocol prepares them.
    prompts: N captions.
    extractors: of the evaluation.
    device: where networks compute.
    full_size: (N, 3, H', W') uint8, the images as they were generated; None: the same as `images`.
    """

    rows: list[int]
    images: Tensor
    prompts: list[str]
    extractors: Extractors
    device: torch.device | str = "cpu"
    full_size: Tensor | None = None
    _features: dict[tuple[View, str], Tensor] = field(default_factory=dict, init=False, repr=False)

    def features(self, view: View = PLAIN, extractor: str | None = None) -> Tensor:
        """Features of the images as seen in a view: (N, D) float32 on the CPU.

        Args:
            view: how the extractor gets the images.
            extractor: its name; by default the evaluator's own.

        Raises:
            UserError: features are not finite, or an image is smaller than the view's patch.
        """
        network = self.extractors[extractor]
        key = view, network.name
        if key not in self._features:
            features = network(self._seen(view).to(self.device)).cpu()
            if not features.isfinite().all():
                raise UserError(f"features of {network.name} are not finite: the file of its weights is damaged")
            self._features[key] = features
        return self._features[key]

    def _seen(self, view: View) -> Tensor:
        """The images as seen in a view, (N, 3, h, w) uint8."""
        images = self.images
        if view.patch:
            images = center_patch(images if self.full_size is None else self.full_size, view.patch)
        return with_grain(images, view.grain, [GENERATED_SEED + row for row in self.rows])
