"""The evaluation loop: a protocol's images are generated once and handed to the protocol's metrics."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from diffgan.evaluation.features.base import FeatureExtractor
from diffgan.evaluation.features.registry import Extractors
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.real_images import RealImages
from diffgan.evaluation.saved_images import SavedImages
from diffgan.evaluation.teacher_images import TeacherImages, WithTeacherImages
from diffgan.evaluation.work_split import SINGLE_PROCESS, WorkSplit
from diffgan.images import finite_uint8
from diffgan.noise import draw_noise

# (noise (N, C, H, W) on the CPU, N prompts, the N seeds of the noise) -> images (N, 3, H, W) in [-1, 1], on any device
Generate = Callable[[Tensor, list[str], list[int]], Tensor]


class EvaluationProtocol(Protocol):
    """What is generated and measured: row i is one image, of prompts[i] and the noise of seeds[i]."""

    name: str
    prompts: list[str]
    seeds: range
    digest: str

    def metrics(self, extractor: str) -> list[ImageMetric]:
        """The metrics, with the features of an extractor of that name."""

    def teacher_metrics(self, extractor: str) -> list[ImageMetric]:
        """The metrics that compare with the teacher's images of the same rows; asked for only if there are some."""


class Evaluator(ABC):
    """Evaluate generators by a protocol.

    settings: numbers that the metrics depend on and that stand beside them.

    Args:
        protocol: what is generated and measured.
        extractor: features of the distances; of a name, they are loaded if a metric needs them.
        metrics: what is computed; by default what the protocol lists.
        cache: folder where the features of real images are kept between runs; None: in memory only.
        batch_size: images of one process at once.
        teacher_images: folder of the teacher's images of this protocol; with it the protocol's `teacher_metrics` are
            computed too.

    Raises:
        UserError: a file of the protocol or the weights of a metric's network are missing, or the teacher's images are
            of another protocol.
    """

    settings: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        protocol: EvaluationProtocol,
        extractor: FeatureExtractor | str,
        metrics: list[ImageMetric] | None = None,
        cache: Path | None = None,
        batch_size: int = 16,
        teacher_images: Path | None = None,
    ):
        self.protocol, self.cache, self.batch_size = protocol, cache, batch_size
        self.digest, self.prompts = protocol.digest, protocol.prompts  # a missing file is found now, not after hours
        self.extractors = Extractors(extractor)
        self.metrics = protocol.metrics(self.extractors.own_name) if metrics is None else metrics
        self.teacher = None
        if teacher_images is not None:
            self.teacher = TeacherImages(teacher_images, protocol.name, self.digest, len(self.prompts))
            self.metrics = self.metrics + protocol.teacher_metrics(self.extractors.own_name)
        self.load(self.metrics)
        self._real: RealImages | None = None

    @property
    def extractor(self) -> FeatureExtractor:
        """The evaluator's own extractor."""
        return self.extractors[None]

    def load(self, metrics: list[ImageMetric]) -> None:
        """Load the networks of metrics; raises UserError if weights are missing."""
        for metric in metrics:
            metric.load()
            if metric.extractor is not None:
                metric.extractor = self.extractors[metric.extractor].name  # other weights have another name

    @abstractmethod
    def build_real_images(self, device: torch.device | str, split: WorkSplit) -> RealImages:
        """The real images of the protocol."""

    def prepare(self, images: Tensor) -> Tensor:
        """Generated images (N, 3, H, W) uint8 on the CPU, as metrics get them."""
        return images

    @torch.no_grad()
    def evaluate(
        self,
        generate: Generate,
        latent_shape: Sequence[int],
        device: torch.device | str = "cpu",
        split: WorkSplit = SINGLE_PROCESS,
        saved: SavedImages | None = None,
    ) -> dict[str, Any]:
        """Evaluate a generator; every process generates and measures its own batches (collective).

        Args:
            generate: called with noise (n, *latent_shape), n prompts and n seeds at a time.
            latent_shape: (C, H, W).
            device: where the networks of the metrics compute.
            split: this process's place among all.
            saved: where generated images are written; batches that are there are read instead.

        Returns:
            The values of all metrics; images, their number; seconds_per_image of generation on one process, if it has
            generated any; protocol and protocol_digest; teacher_images, what made them, if there are some.
        """

        def images_of(rows: list[int]) -> Tensor:
            return self._images(generate, rows, tuple(latent_shape), saved)

        self._move_networks(device)
        self.seconds, self.generated = 0.0, 0
        count = len(self.prompts)
        values = self.measure(self.metrics, images_of, count, "evaluate: generating", device, split)
        self._move_networks("cpu")
        if saved is not None:
            saved.finish()
        speed = {"seconds_per_image": self.seconds / self.generated} if self.generated else {}
        own = {"protocol": self.protocol.name, "protocol_digest": self.digest, "images": float(count)}
        if self.teacher is not None:
            own |= {"teacher_images": self.teacher.made_by}
        return own | self.settings | speed | values

    def measure(
        self,
        metrics: list[ImageMetric],
        images_of: Callable[[list[int]], Tensor],
        count: int,
        title: str,
        device: torch.device | str = "cpu",
        split: WorkSplit = SINGLE_PROCESS,
    ) -> dict[str, float]:
        """The values of metrics over images that are made in batches (collective).

        What depends on the real images alone is computed after the first batch.

        Args:
            metrics: what is computed.
            images_of: rows of the protocol -> images (N, 3, H, W) uint8 on the CPU.
            count: how many of the protocol's first rows, of all processes.
            title: of the progress bar.
        """
        self.load(metrics)
        for metric in metrics:
            metric.reset()

        batches = split.batches(count, self.batch_size)
        for number, rows in enumerate(split.progress(batches, title)):
            batch = self._batch(rows, images_of(rows), device)
            for metric in metrics:
                metric.update(batch)
            if number == 0:  # a generator that fails has failed; a damaged real image is found before the other batches
                self._set_up(metrics, device, split)
        return _computed(metrics, split)

    def _set_up(self, metrics: list[ImageMetric], device: torch.device | str, split: WorkSplit) -> None:
        """Hand the real images to the metrics (collective).

        Metrics that need all features come first: statistics are then computed from these features.
        """
        real = self.real_images(device, split)
        for metric in sorted(metrics, key=lambda metric: not metric.needs_features):
            metric.setup(real)

    def real_images(self, device: torch.device | str = "cpu", split: WorkSplit = SINGLE_PROCESS) -> RealImages:
        """The real images; their features are computed once, on the device and processes of the first call."""
        if self._real is None:
            self._real = self.build_real_images(device, split)
            if self.teacher is not None:
                batch_of = partial(self._batch, device=device)
                self._real = WithTeacherImages(
                    self._real, self.teacher, batch_of, self.extractors, self.cache, self.batch_size, split
                )
        return self._real

    def _batch(self, rows: list[int], images: Tensor, device: torch.device | str) -> ImageBatch:
        """Images (N, 3, H, W) uint8 of some rows, prepared for the metrics."""
        prompts = [self.prompts[row] for row in rows]
        return ImageBatch(rows, self.prepare(images), prompts, self.extractors, device, full_size=images)

    def _images(
        self, generate: Generate, rows: list[int], latent_shape: tuple[int, ...], saved: SavedImages | None
    ) -> Tensor:
        """The images of some rows, uint8 on the CPU: those that are saved, or generated."""
        images = None if saved is None else saved.read(rows)
        if images is None:
            images = self._generate(generate, rows, latent_shape)
            if saved is not None:
                saved.write(rows, images)
        return images

    def _generate(self, generate: Generate, rows: list[int], latent_shape: tuple[int, ...]) -> Tensor:
        """The images of some rows, uint8 on the CPU; time and number are added to `seconds` and `generated`."""
        prompts = [self.prompts[row] for row in rows]
        seeds = [self.protocol.seeds[row] for row in rows]
        noise = draw_noise(seeds, latent_shape)
        start = time.perf_counter()
        images = finite_uint8(generate(noise, prompts, seeds), prompts, seeds).cpu()
        self.seconds += time.perf_counter() - start
        self.generated += len(rows)
        return images

    def _move_networks(self, device: torch.device | str) -> None:
        for network in (self.extractors, *self.metrics):
            network.to(device)


def _computed(metrics: list[ImageMetric], split: WorkSplit) -> dict[str, float]:
    """The values of all metrics from the images of all processes (collective)."""
    values: dict[str, float] = {}
    for metric in metrics:
        with metric.sync_context(split.gather_list, distributed_available=lambda: split.world > 1):
            values |= metric.compute()
    return values
