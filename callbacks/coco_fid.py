"""Evaluation on a COCO protocol as a callback."""

from pathlib import Path

from torch import nn

from callbacks.evaluation import Evaluation
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.numbers import require_batch_size


class COCOFID(Evaluation):
    """Evaluate `generator_ema` on a COCO protocol; log the metrics as `evaluation/<name>`.

    Args:
        protocol: file of the protocol, e.g. configs/protocols/coco2014-30k.yaml.
        every_images: in a fit, evaluate at the first validation after each multiple of so many images; by default
            never in a fit.
        extractor: features of the distance; FID's Inception by default.
        cache: folder where the statistics of the real images are kept between runs.
        batch_size: images of one process at once.
        fit_only: evaluate in no `diffgan validate` and `diffgan test`: a short protocol to follow a run by, while
            another callback with the complete one evaluates its result.
        teacher_images: folder of the teacher's images of this protocol, which `diffgan evaluate --save_images` writes,
            for the metrics that compare with them.
    """

    def __init__(
        self,
        protocol: Path,
        every_images: int | None = None,
        extractor: nn.Module | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
        fit_only: bool = False,
        teacher_images: Path | None = None,
    ):
        super().__init__(every_images, fit_only)
        require_batch_size("COCOFID: batch_size", batch_size)
        self.protocol, self.extractor, self.cache, self.batch_size = protocol, extractor, cache, batch_size
        self.teacher_images = teacher_images

    def build_evaluator(self) -> CocoEvaluator:
        protocol = read_protocol(self.protocol)
        return CocoEvaluator(protocol, self.extractor, self.cache, self.batch_size, self.teacher_images)
