"""The glyph judge as a callback: figures of the one-step generator at validation and test."""

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor

from callbacks.evaluation import Evaluation
from diffgan.evaluation.glyph_evaluator import Generate, GlyphEvaluator
from diffgan.evaluation.protocols.glyphs import glyph_protocol


class GlyphEvaluation(Evaluation):
    """Judge `generator_ema` on a glyph protocol; log the figures as `judge/<name>`.

    Under several processes each generates its share of every batch, and exactly the protocol's images count.

    Args:
        protocol: "glyphs-500" or "glyphs-2k".
        every_images: in a fit, judge at the first validation after so many more images; by default never in a fit.
        cache: where features of the real pictures are kept between runs.
    """

    def __init__(self, protocol: str = "glyphs-2k", every_images: int | None = None, cache: Path | None = None):
        super().__init__(every_images)
        self.protocol, self.cache = glyph_protocol(protocol), cache
        self._judge: GlyphEvaluator | None = None

    def judge(self, pl_module: pl.LightningModule) -> dict[str, float | str]:
        if self._judge is None:
            self._judge = GlyphEvaluator(self.protocol, cache=self.cache)
        return self._judge.evaluate(_one_step(pl_module), pl_module.teacher.latent_shape)


def _one_step(pl_module: pl.LightningModule) -> Generate:
    """The averaged generator and the decoder, each process doing its share of a batch and getting the whole."""

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        rank, world = pl_module.trainer.global_rank, pl_module.trainer.world_size
        share = -(-len(prompts) // world)  # rows of a process; the last ones repeat the last row, cut off below
        rows = [min(i, len(prompts) - 1) for i in range(rank * share, (rank + 1) * share)]
        conditioning = pl_module.teacher.encode([prompts[i] for i in rows])
        latent = pl_module.generator_ema(noise[rows].to(pl_module.device), conditioning)
        images = pl_module.teacher.decode(latent)
        return pl_module.all_gather(images).reshape(-1, *images.shape[1:])[: len(prompts)] if world > 1 else images

    return generate
