"""CLIP score: how far an image shows what its caption says."""

from torch import Tensor

from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric


class CLIPScore(ImageMetric):
    """Mean of `CLIPSimilarity` over images and their captions. Key: clip_score.

    It is not scaled by 2.5 or 100, as in the paper's tables.

    Args:
        model, weights: names of open_clip, as of `CLIPSimilarity`.
        selected: the protocol's rows that count.
    """

    columns = (Column("clip_score", "CLIP score", 3, better="higher"),)

    def __init__(self, model: str, weights: str, selected: slice = ALL):
        super().__init__(selected)
        self.model, self.weights = model, weights
        self.network = None

    def load(self) -> None:
        """Load the network; raises UserError if there is no such model, or its weights cannot be loaded."""
        from diffgan.evaluation.features.clip import CLIPSimilarity  # open_clip is slow to import: tables need none

        if self.network is None:
            self.network = CLIPSimilarity(self.model, self.weights)

    def missing_weights(self) -> list[str]:
        from diffgan.evaluation.features.clip import missing_weights

        return missing_weights(self.model, self.weights)

    def measure(self, batch: ImageBatch) -> Tensor:
        return self.network(batch.images.to(batch.device), batch.prompts).cpu()

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return {"clip_score": measured.double().mean().item()}
