"""Precision and recall of images: how many look real, and how many of the real ones could have been generated."""

from typing import NamedTuple

from torch import Tensor

from diffgan.errors import UserError
from diffgan.evaluation.metrics.base import Column
from diffgan.evaluation.metrics.distances import FeatureDistance
from diffgan.evaluation.real_images import RealImages

NEIGHBOUR = 3  # k
BATCH = 2000  # rows of a matrix of distances that is in memory at once


class PrecisionRecall(FeatureDistance):
    """`precision_recall` of the features.

    Keys: precision_<extractor>, recall_<extractor>, and `..._floor` of other real images.
    """

    needs_features = True

    @property
    def name(self) -> str:
        """The end of the keys, e.g. "efficientnet_grain"."""
        return f"{self.extractor}{self.view.suffix}"

    @property
    def columns(self) -> tuple[Column, ...]:
        return tuple(
            Column(f"{kind}_{self.name}", self.titled(kind), 3, real_key=f"{kind}_{self.floor_key}", better="higher")
            for kind in Shares._fields
        )

    def setup(self, real: RealImages) -> None:
        self.reference = real.features(self.reference_name, self.view, self.extractor)
        if self.floor_name is not None:
            floor = real.features(self.floor_name, self.view, self.extractor)
            self.floor = _keyed(precision_recall(floor, self.reference), self.floor_key)

    def summarize(self, measured: Tensor) -> dict[str, float]:
        return _keyed(precision_recall(measured, self.reference), self.name) | self.floor


class Shares(NamedTuple):
    """precision: share of generated images among the real ones.  recall: share of real ones among the generated."""

    precision: float
    recall: float


def precision_recall(generated: Tensor, real: Tensor) -> Shares:
    """Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991) with k = 3, by torch-fidelity, in float64.

    An image is among others if it is at least as near to one of them as that one's third neighbour among them.

    Args:
        generated, real: features (N, D) and (M, D).

    Raises:
        UserError: a set has no more than k images.
    """
    from torch_fidelity.metric_prc import calculate_precision_recall_part  # slow to import: tables need none

    if min(len(generated), len(real)) <= NEIGHBOUR:
        raise UserError(
            f"precision and recall need more than {NEIGHBOUR} images a set, there are {len(generated)} and {len(real)}"
        )
    return Shares(*calculate_precision_recall_part(generated.double(), real.double(), NEIGHBOUR, BATCH))


def _keyed(shares: Shares, end: str) -> dict[str, float]:
    return {f"{kind}_{end}": value for kind, value in shares._asdict().items()}
