"""COCO evaluation as a callback: FID and CLIP score of the one-step generator at validation and test."""

from pathlib import Path

import lightning.pytorch as pl
from torch import Tensor, nn

from callbacks.evaluation import Evaluation
from diffgan.evaluation.coco_evaluator import CocoEvaluator, Generate
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit


class COCOFID(Evaluation):
    """Judge `generator_ema` on a COCO protocol; log the figures as `judge/<name>`.

    Under several processes each generates and looks at its share; exactly the protocol's images count.

    Args:
        protocol: file of the protocol, e.g. configs/protocols/coco2014-30k.yaml.
        every_images: in a fit, judge at the first validation after so many more images; by default never in a fit.
        extractor: features of the distance; FID's Inception by default.
        cache: folder where the statistics of the real pictures are kept between runs.
        batch_size: images of one process at once.
    """

    def __init__(
        self,
        protocol: Path,
        every_images: int | None = None,
        extractor: nn.Module | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
    ):
        super().__init__(every_images)
        self.protocol, self.extractor, self.cache, self.batch_size = protocol, extractor, cache, batch_size
        self._judge: CocoEvaluator | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Load what judges; raises UserError if something is missing (a fit that never judges needs nothing)."""
        if self._judge is None and (stage != "fit" or self.every_images is not None):
            self._judge = CocoEvaluator(read_protocol(self.protocol), self.extractor, self.cache, self.batch_size)

    def judge(self, pl_module: pl.LightningModule) -> dict[str, float | str]:
        trainer = pl_module.trainer
        many = WorkSplit(trainer.global_rank, trainer.world_size, pl_module.all_gather)
        place = many if trainer.world_size > 1 else SINGLE_PROCESS  # there `all_gather` adds no dimension
        return self._judge.evaluate(one_step(pl_module), pl_module.teacher.latent_shape, pl_module.device, place)


def one_step(pl_module: pl.LightningModule) -> Generate:
    """The averaged generator and the decoder."""

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latent = pl_module.generator_ema(noise.to(pl_module.device), pl_module.teacher.encode(prompts))
        return pl_module.teacher.decode(latent)

    return generate
