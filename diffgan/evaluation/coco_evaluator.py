"""Evaluate generators of photographs: Fréchet distance to real ones and CLIP score, on a COCO protocol."""

from pathlib import Path

import torch
from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.evaluator import Evaluator
from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.features.inception import InceptionFeatures
from diffgan.evaluation.grain import REAL_SEED, View, with_grain
from diffgan.evaluation.metrics.statistics import FeatureStatistics, read_statistics
from diffgan.evaluation.preprocessing import read_images, resize_images
from diffgan.evaluation.protocols.coco import CocoProtocol
from diffgan.evaluation.real_images import RealImages, cache_file, cached_tensors
from diffgan.evaluation.work_split import WorkSplit


class RealPhotographs(RealImages):
    """The real images of a protocol; only the statistics of their features are kept.

    Args: as those of `CocoEvaluator`; device, split: where features are computed, and by which processes.
    """

    def __init__(
        self,
        protocol: CocoProtocol,
        extractor: FeatureExtractor,
        cache: Path | None,
        batch_size: int,
        device: torch.device | str,
        split: WorkSplit,
    ):
        self.protocol, self.extractor, self.cache, self.batch_size = protocol, extractor, cache, batch_size
        self.device, self.split = device, split
        self._statistics: dict[View, FeatureStatistics] = {}

    def statistics(self, name: str, view: View) -> FeatureStatistics:
        if view not in self._statistics:
            self._statistics[view] = self._read_or_compute(name, view)
        return self._statistics[view]

    def _read_or_compute(self, name: str, view: View) -> FeatureStatistics:
        file = self.protocol.reference_files[0]
        if file.suffix == ".npz":
            return read_statistics(file)
        cached = cache_file(self.cache, self.protocol.name, self.protocol.digest, self.extractor, view)
        tensors = cached_tensors(cached, lambda: FeatureStatistics.of(self.features(name, view))._asdict(), self.split)
        return FeatureStatistics(**tensors)

    def features(self, name: str, view: View) -> Tensor:
        files, features = self.protocol.reference_files, []
        if files[0].suffix == ".npz":
            raise UserError(
                f"{files[0]}: holds statistics, but a metric of protocol {self.protocol.name} needs the features of "
                "every image; name a folder of images"
            )
        own = self.split.batches(len(files), self.batch_size)
        for rows in self.split.progress(own, "evaluate: features of real images"):
            images = read_images([files[row] for row in rows], self.protocol.side)
            grained = with_grain(images, view.grain, [REAL_SEED + row for row in rows])
            features.append(self.extractor(grained.to(self.device)).cpu())
        return self.split.in_order(torch.cat(features), len(files), self.batch_size)


class CocoEvaluator(Evaluator):
    """Evaluate generators of photographs by a protocol.

    Args:
        protocol: what is generated and measured.
        extractor: features of the distance; FID's Inception by default. Of any other the distance is called
            `fd_<name>`.
        cache: folder where the statistics of the real images are kept between runs.
        batch_size: images of one process at once.

    Raises:
        UserError: captions, reference or a network's weights are missing.
    """

    def __init__(
        self,
        protocol: CocoProtocol,
        extractor: FeatureExtractor | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
    ):
        protocol.digest  # noqa: B018 (reads captions and reference: they are checked before weights are downloaded)
        extractor = InceptionFeatures() if extractor is None else extractor
        super().__init__(protocol, extractor, cache=cache, batch_size=batch_size)

    def build_real_images(self, device: torch.device | str, split: WorkSplit) -> RealPhotographs:
        return RealPhotographs(self.protocol, self.extractor, self.cache, self.batch_size, device, split)

    def prepare(self, images: Tensor) -> Tensor:
        return resize_images(images, self.protocol.side)
