"""The metrics that the file of a COCO protocol can list, by name."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from diffgan.evaluation.features.base import CMMD_FEATURES, DREAMSIM_FEATURES
from diffgan.evaluation.grain import PATCH
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.metrics.clip_score import CLIPScore
from diffgan.evaluation.metrics.cmmd import CMMD
from diffgan.evaluation.metrics.distances import FrechetDistance, KernelDistance
from diffgan.evaluation.metrics.diversity import PromptDiversity
from diffgan.evaluation.metrics.precision_recall import PrecisionRecall
from diffgan.evaluation.metrics.teacher import TeacherDistance, TeacherFrechetDistance


class MetricSettings(NamedTuple):
    """What a protocol and its evaluator give to metrics.

    extractor: name of the evaluator's own features.
    matched: rows of which there is one for each caption.
    varied: rows of the diversity prompts, `images_per_prompt` of each.
    clip_model, clip_weights: of the CLIP score.
    """

    extractor: str
    matched: slice
    varied: slice
    images_per_prompt: int
    clip_model: str
    clip_weights: str


class MetricKind(NamedTuple):
    """build: a metric with some settings.  needs: what a protocol or evaluator must have for it."""

    build: Callable[[MetricSettings], ImageMetric]
    needs: Literal["reference", "clip_model", "teacher_images", "diversity_prompts"]


COCO_METRICS = {  # in the order of the tables' columns
    "fid": MetricKind(lambda s: FrechetDistance(s.extractor, selected=s.matched), "reference"),
    "clip_score": MetricKind(lambda s: CLIPScore(s.clip_model, s.clip_weights, s.matched), "clip_model"),
    "kid": MetricKind(lambda s: KernelDistance(s.extractor, selected=s.matched), "reference"),
    "precision_recall": MetricKind(lambda s: PrecisionRecall(s.extractor, selected=s.matched), "reference"),
    "fd_dinov2": MetricKind(lambda s: FrechetDistance("dinov2", selected=s.matched), "reference"),
    "cmmd": MetricKind(lambda s: CMMD(CMMD_FEATURES, selected=s.matched), "reference"),
    "fid_t": MetricKind(lambda s: TeacherFrechetDistance(s.extractor, selected=s.matched), "teacher_images"),
    "fid_t_patch": MetricKind(lambda s: TeacherFrechetDistance(s.extractor, PATCH, s.matched), "teacher_images"),
    "dreamsim_n": MetricKind(lambda s: TeacherDistance(DREAMSIM_FEATURES, selected=s.matched), "teacher_images"),
    "distance_n": MetricKind(lambda s: TeacherDistance(s.extractor, selected=s.matched), "teacher_images"),
    "dreamdiv": MetricKind(
        lambda s: PromptDiversity(DREAMSIM_FEATURES, s.varied, s.images_per_prompt), "diversity_prompts"
    ),
    "diversity": MetricKind(lambda s: PromptDiversity(s.extractor, s.varied, s.images_per_prompt), "diversity_prompts"),
}
