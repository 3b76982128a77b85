"""The columns of result tables: those of the metrics that protocols can list."""

from diffgan.evaluation.features.base import FID_FEATURES
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric
from diffgan.evaluation.protocols.coco_metrics import COCO_METRICS, MetricSettings
from diffgan.evaluation.protocols.glyphs import GLYPH_PROTOCOLS


def metric_columns() -> list[Column]:
    """The columns of every protocol's metrics, in the order of their lists and each once; no network is loaded.

    Metrics of other extractors than a protocol's default are in metrics.json only.
    """
    settings = MetricSettings(FID_FEATURES, ALL, ALL, 2, "ViT-g-14", "laion2b_s12b_b42k")
    metrics: list[ImageMetric] = [kind.build(settings) for kind in COCO_METRICS.values()]
    for protocol in GLYPH_PROTOCOLS.values():
        metrics += protocol.metrics() + protocol.teacher_metrics()
    columns = {column.key: column for metric in metrics for column in metric.columns}
    return list(columns.values())
