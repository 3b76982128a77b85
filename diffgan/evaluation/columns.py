"""The columns of result tables: those of the metrics that protocols list."""

from diffgan.evaluation.metrics.base import Column, ImageMetric
from diffgan.evaluation.metrics.clip_score import CLIPScore
from diffgan.evaluation.protocols.coco import coco_metrics
from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS


def metric_columns() -> list[Column]:
    """The columns of every protocol's metrics, in the order of the protocols' lists and each once; no network is loaded.

    Metrics of other extractors than a protocol's default are in metrics.json only.
    """
    metrics: list[ImageMetric] = coco_metrics(clip=CLIPScore("ViT-g-14", "laion2b_s12b_b42k"))
    for protocol in GLYPH_PROTOCOLS.values():
        metrics += protocol.metrics()
    columns = {column.key: column for metric in metrics for column in metric.columns}
    return list(columns.values())
