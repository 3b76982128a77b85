"""A metric of validation whose lowest value is sought."""

import math

import lightning.pytorch as pl
from torch import Tensor

from callbacks.evaluation import Evaluation
from diffgan.errors import UserError

EVALUATION = "evaluation"  # group of the metrics that only some validations measure


class Monitor:
    """The lowest value so far of a metric that validations log; not every validation needs to measure it.

    Args:
        owner: name of the callback, for messages.
        name: of the metric, "<group>/<name>".
    """

    def __init__(self, owner: str, name: str):
        self.owner, self.name, self.best = owner, name, math.inf
        self._before: dict[str, Tensor] = {}  # values of earlier validations

    def check(self, trainer: pl.Trainer) -> None:
        """Raises UserError if the metric is one of an evaluation, and no callback evaluates during a fit."""
        evaluates = any(isinstance(each, Evaluation) and each.every_images is not None for each in trainer.callbacks)
        if self._group(self.name) == EVALUATION and not evaluates:
            raise UserError(
                f"{self.owner}: monitor {self.name} is never measured: no evaluation runs during a fit; set "
                "every_images of the evaluation callback, or choose a metric such as validation/mse"
            )

    def start(self, trainer: pl.Trainer) -> None:
        """Call when a validation starts."""
        self._before = dict(trainer.callback_metrics)

    def measured(self, trainer: pl.Trainer) -> float | None:
        """The value that the validation that has just ended measured; None if it did not.

        Lightning keeps the values of earlier validations: a new one is another tensor.

        Raises:
            UserError: the metric does not exist: others of its group were measured, or it is of no known group.
        """
        values = trainer.callback_metrics
        new = {name: value for name, value in values.items() if value is not self._before.get(name)}
        if self.name in new:
            return float(new[self.name])
        if self._group(self.name) != EVALUATION or any(self._group(name) == EVALUATION for name in new):
            known = ", ".join(sorted(name for name in new if "/" in name)) or "none"
            raise UserError(f"{self.owner}: monitor {self.name} is no metric of this validation; measured: {known}")
        return None

    def improves(self, trainer: pl.Trainer, value: float | None) -> bool:
        """Whether a value is lower than the best so far, which it then becomes (collective, decided by the first)."""
        value = trainer.strategy.broadcast(value)
        if value is None or not value < trainer.strategy.broadcast(self.best):
            return False
        self.best = value
        return True

    @staticmethod
    def _group(name: str) -> str:
        return name.partition("/")[0]
