"""Evaluate generators of photographs on a COCO protocol: by its metrics, against real photographs."""

import sys
from pathlib import Path

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator
from diffgan.evaluation.features.base import FID_FEATURES, FeatureExtractor
from diffgan.evaluation.features.registry import Extractors
from diffgan.evaluation.grain import REAL_SEED, View, with_grain
from diffgan.evaluation.metrics.distances import REFERENCE, FeatureDistance
from diffgan.evaluation.metrics.statistics import FeatureStatistics, read_statistics
from diffgan.evaluation.preprocessing import read_images, resize_images
from diffgan.evaluation.protocols.coco import CocoProtocol
from diffgan.evaluation.protocols.coco_metrics import COCO_METRICS
from diffgan.evaluation.real_images import RealImages, cache_file, cached_tensors
from diffgan.evaluation.work_split import WorkSplit


class RealPhotographs(RealImages):
    """The real images of a protocol; if no metric needs more, only the statistics of their features are kept.

    Args: as those of `CocoEvaluator`; extractors: of the evaluation; device, split: where features are computed, and by
    which processes.
    """

    def __init__(
        self,
        protocol: CocoProtocol,
        extractors: Extractors,
        cache: Path | None,
        batch_size: int,
        device: torch.device | str,
        split: WorkSplit,
    ):
        self.protocol, self.extractors, self.cache, self.batch_size = protocol, extractors, cache, batch_size
        self.device, self.split = device, split
        self._statistics: dict[tuple[View, str], FeatureStatistics] = {}
        self._features: dict[tuple[View, str], Tensor] = {}

    def statistics(self, name: str, view: View, extractor: str | None = None) -> FeatureStatistics:
        network = self.extractors[extractor]
        key = view, network.name
        if key not in self._statistics:
            self._statistics[key] = self._read_or_compute(view, network)
        return self._statistics[key]

    def features(self, name: str, view: View, extractor: str | None = None) -> Tensor:
        network = self.extractors[extractor]
        key = view, network.name
        if key not in self._features:
            file = self._cache_file("features", view, network)
            tensors = cached_tensors(file, lambda: {"features": self._extract(view, network)}, self.split)
            self._features[key] = tensors["features"]
        return self._features[key]

    def _cache_file(self, kind: str, view: View, extractor: FeatureExtractor) -> Path | None:
        return cache_file(self.cache, kind, self.protocol.name, self.protocol.digest, extractor, view)

    def _read_or_compute(self, view: View, extractor: FeatureExtractor) -> FeatureStatistics:
        file = self.protocol.reference_files[0]
        if file.suffix == ".npz":
            return read_statistics(file)

        def compute() -> dict[str, Tensor]:
            features = self._features.get((view, extractor.name))
            return FeatureStatistics.of(self._extract(view, extractor) if features is None else features)._asdict()

        return FeatureStatistics(**cached_tensors(self._cache_file("real", view, extractor), compute, self.split))

    def _extract(self, view: View, extractor: FeatureExtractor) -> Tensor:
        """Features of all real images (collective)."""
        files, features = self.protocol.reference_files, []
        _require_images(files, self.protocol.name)
        own = self.split.batches(len(files), self.batch_size)
        for rows in self.split.progress(own, "evaluate: features of real images"):
            images = read_images([files[row] for row in rows], self.protocol.side)
            grained = with_grain(images, view.grain, [REAL_SEED + row for row in rows])
            features.append(extractor(grained.to(self.device)).cpu())
        return self.split.in_order(torch.cat(features), len(files), self.batch_size)


class CocoEvaluator(Evaluator):
    """Evaluate generators of photographs by a protocol.

    Args:
        protocol: what is generated and measured.
        extractor: features of the distances; FID's Inception by default. Of any other the distance is called
            `fd_<name>`.
        cache: folder where the features of the real images, or their statistics, are kept between runs.
        batch_size: images of one process at once.
        teacher_images: folder of the teacher's images of this protocol, for the metrics that compare with them.

    Raises:
        UserError: captions, reference or a network's weights are missing, or the reference's statistics are of another
            extractor.
    """

    def __init__(
        self,
        protocol: CocoProtocol,
        extractor: FeatureExtractor | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
        teacher_images: Path | None = None,
    ):
        extractor = FID_FEATURES if extractor is None else extractor  # loaded after captions and reference are checked
        super().__init__(protocol, extractor, None, cache, batch_size, teacher_images)
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Refuse a reference that the metrics cannot use, before images are generated."""
        if not self.protocol.reference or Path(self.protocol.reference).suffix != ".npz":
            return
        (file,) = self.protocol.reference_files
        size, black = len(read_statistics(file).mean), torch.zeros(1, 3, *[self.protocol.side] * 2, dtype=torch.uint8)
        for metric in self.metrics:
            if not isinstance(metric, FeatureDistance) or metric.reference_name != REFERENCE:
                continue
            if metric.needs_features:
                _require_images([file], self.protocol.name)
            if (expected := self.extractors[metric.extractor](black).shape[1]) != size:
                raise UserError(
                    f"{file}: holds the mean of {size} features, but {metric.name} needs {expected} of "
                    f"{metric.extractor}: it is of another extractor; name the right one, or a folder of images"
                )

    def build_real_images(self, device: torch.device | str, split: WorkSplit) -> RealPhotographs:
        if self.teacher is None and split.rank == 0:
            self._report_omitted()
        return RealPhotographs(self.protocol, self.extractors, self.cache, self.batch_size, device, split)

    def _report_omitted(self) -> None:
        """Name the metrics of the protocol that are not computed; the teacher itself is evaluated without them."""
        omitted = [name for name in self.protocol.listed if COCO_METRICS[name].needs == "teacher_images"]
        if omitted:
            print(
                f"diffgan: protocol {self.protocol.name}: {', '.join(omitted)} not computed without teacher_images, "
                "a folder of the teacher's images",
                file=sys.stderr,
            )

    def prepare(self, images: Tensor) -> Tensor:
        return resize_images(images, self.protocol.side)


def _require_images(files: list[Path], protocol: str) -> None:
    """Raises UserError if the reference is a file of statistics."""
    if files[0].suffix == ".npz":
        raise UserError(
            f"{files[0]}: holds statistics, but a metric of protocol {protocol} needs the features of "
            "every image; name a folder of images"
        )
