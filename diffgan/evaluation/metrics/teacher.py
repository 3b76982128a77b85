"""Metrics of a student against its teacher's images of the same noises and captions."""

from torch import Tensor

from diffgan.evaluation.features.base import DREAMSIM_FEATURES, FID_FEATURES
from diffgan.evaluation.grain import PLAIN, View
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.base import ALL, Column, ImageMetric
from diffgan.evaluation.metrics.distances import EXTRACTOR_TITLES, FrechetDistance, frechet_distance
from diffgan.evaluation.metrics.image_distances import image_distances
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.real_images import RealImages
from diffgan.evaluation.teacher_images import TEACHER


class TeacherFrechetDistance(FrechetDistance):
    """`frechet_distance` between the student's and the teacher's images; FID-T with the features of FID's Inception.

    Seen in patches of the full size it is patch FID-T (SDXL-Lightning, arXiv 2402.13929: 299 pixels, not resized).

    Keys: fid_t, or fd_t_<extractor> of any other extractor, with the view's suffix.

    Args:
        extractor: name of the features.
        view: how the extractor gets the images.
        selected: the protocol's rows that count.
    """

    prefix = "fd_t"

    def __init__(self, extractor: str, view: View = PLAIN, selected: slice = ALL):
        super().__init__(extractor, view, selected, reference=TEACHER)

    @property
    def name(self) -> str:
        """The key: only that of FID's own features is called "fid_t"."""
        distance = "fid_t" if self.extractor == FID_FEATURES else f"fd_t_{self.extractor}"
        return f"{distance}{self.view.suffix}"

    @property
    def columns(self) -> tuple[Column, ...]:
        if self.extractor == FID_FEATURES:
            return (Column(self.name, self.titled("FID-T"), 2, better="lower"),)
        title = "FD-T" if self.view.name else f"FD-T ({EXTRACTOR_TITLES.get(self.extractor, self.extractor)})"
        return (Column(self.name, self.titled(title), 1, better="lower"),)

    def setup(self, real: RealImages) -> None:
        teacher = real.features(TEACHER, self.view, self.extractor)[self.selected]
        self.reference = FeatureStatistics.of(teacher)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return {self.name: frechet_distance(FeatureStatistics.of(measured), self.reference)}


class TeacherDistance(ImageMetric):
    """Mean of `image_distances` between the student's and the teacher's image of one noise and caption.

    With DreamSim's features it is DreamSim-N. Keys: dreamsim_n, or distance_n_<extractor> of any other extractor, with
    the view's suffix.

    Args:
        extractor: name of the features.
        view: how the extractor gets the images.
        selected: the protocol's rows that count.
    """

    needs_features = True

    def __init__(self, extractor: str, view: View = PLAIN, selected: slice = ALL):
        super().__init__(selected, extractor)
        self.view = view

    @property
    def name(self) -> str:
        """The key: only that of DreamSim's features is called "dreamsim_n"."""
        distance = "dreamsim_n" if self.extractor == DREAMSIM_FEATURES else f"distance_n_{self.extractor}"
        return f"{distance}{self.view.suffix}"

    @property
    def columns(self) -> tuple[Column, ...]:
        title = "DreamSim-N" if self.extractor == DREAMSIM_FEATURES else "distance to the teacher"
        heading = f"{title}, {self.view.name}" if self.view.name else title
        return (Column(self.name, heading, 3, better="lower"),)

    def setup(self, real: RealImages) -> None:
        self.teacher = real.features(TEACHER, self.view, self.extractor)[self.selected]

    def measure(self, batch: ImageBatch) -> Tensor:
        return batch.features(self.view, self.extractor)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return {self.name: image_distances(measured, self.teacher, self.extractor).mean().item()}
