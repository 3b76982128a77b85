"""What a metric of generated images is, and which columns of a table show it."""

from abc import abstractmethod
from typing import Literal, NamedTuple

import numpy as np
import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from diffgan.evaluation.features.registry import missing_weights
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.real_images import RealImages

ALL = slice(None)


class Column(NamedTuple):
    """A column of the tables.

    key: the value's name in the dictionary of metrics, without "evaluation/".
    heading, digits, scale: the column's heading; digits after the point, of the value times `scale`.
    real_key: name of the value that real images reach, if there is one.
    real_text: what the row of real images shows in any case.
    better: which values are better; None where neither is. Tables mark the best value by it.
    """

    key: str
    heading: str
    digits: int
    scale: float = 1
    real_key: str | None = None
    real_text: str = ""
    better: Literal["lower", "higher"] | None = None


class ImageMetric(torchmetrics.Metric):
    """A metric that is a function of one tensor per image, e.g. of the images' features.

    Subclasses say what is measured of each image (`measure`) and what becomes of the measurements of all
    (`summarize`). Building a metric is cheap and needs no network: tables list the columns of metrics that never run.
    `load` gets the networks, `setup` the real images.

    The states are the rows and their measurements, so that images are in the protocol's order when the metric is
    computed and each counts once, whatever the number of processes. Metrics are not synchronized on `compute`: the
    evaluator does it with the gathering of the running strategy (`sync_context`), because the states stay on the
    CPU, where NCCL cannot gather them, and are too large for the GPU of a training.

    needs_features: whether `setup` needs the features of every real image, not only their statistics.

    Args:
        selected: the protocol's rows that count.
        extractor: name of the features that are measured; None: the evaluator's own, or none.
    """

    full_state_update = False
    columns: tuple[Column, ...] = ()
    needs_features = False

    def __init__(self, selected: slice = ALL, extractor: str | None = None):
        super().__init__(sync_on_compute=False)
        self.selected, self.extractor = selected, extractor
        self.add_state("rows", [], dist_reduce_fx="cat")
        self.add_state("measured", [], dist_reduce_fx="cat")

    def load(self) -> None:
        """Load the networks; raises UserError if weights are missing."""

    def missing_weights(self) -> list[str]:
        """What `load` and the extractor need and this machine lacks, a line each; nothing is loaded or downloaded."""
        return [] if self.extractor is None else missing_weights(self.extractor)

    def setup(self, real: RealImages) -> None:
        """Compute what depends on the real images alone (collective)."""

    @abstractmethod
    def measure(self, batch: ImageBatch) -> Tensor:
        """What is measured of each image: (N, ...) on the CPU."""

    @abstractmethod
    def summarize(self, measured: Tensor) -> dict[str, float]:
        """The metric's values by key.

        Args:
            measured: measurements of the selected rows of all processes, in the protocol's order.
        """

    def update(self, batch: ImageBatch) -> None:
        """Add a batch of this process's images."""
        self.rows.append(torch.tensor(batch.rows))
        self.measured.append(self.measure(batch))

    def compute(self) -> dict[str, float]:
        """The metric's values by key."""
        _, first = np.unique(dim_zero_cat(self.rows).numpy(), return_index=True)
        return self.summarize(dim_zero_cat(self.measured)[torch.from_numpy(first)][self.selected])
