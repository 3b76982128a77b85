"""Evaluation on glyphs as a callback."""

from pathlib import Path

import lightning.pytorch as pl

from callbacks.evaluation import Evaluation
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.protocols.glyphs import glyph_protocol


class GlyphEvaluation(Evaluation):
    """Evaluate `generator_ema` on a glyph protocol; log the metrics as `evaluation/<name>`.

    The networks of the metrics are small and compute on the CPU on every machine.

    Args:
        protocol: "glyphs-500" or "glyphs-2k".
        every_images: in a fit, evaluate at the first validation after each multiple of so many images; by default
            never in a fit.
        cache: where features of the real images are kept between runs.
        teacher_images: folder of the teacher's images of this protocol, which `diffgan evaluate --save_images` writes;
            the student's are then compared with them too.
    """

    batch_size = 50

    def __init__(
        self,
        protocol: str = "glyphs-2k",
        every_images: int | None = None,
        cache: Path | None = None,
        teacher_images: Path | None = None,
    ):
        super().__init__(every_images)
        self.protocol, self.cache, self.teacher_images = glyph_protocol(protocol), cache, teacher_images

    def build_evaluator(self) -> GlyphEvaluator:
        options = {"batch_size": self.batch_size, "teacher_images": self.teacher_images}
        return GlyphEvaluator(self.protocol, cache=self.cache, **options)

    def device(self, pl_module: pl.LightningModule) -> str:
        return "cpu"
