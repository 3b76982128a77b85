"""Calibration of LatentLPIPS: heads fitted to two-alternative forced-choice (2AFC) data."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.perceptual.heads import head_distance, normalize_channels
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.statistics import RunningStatistics
from diffgan.perceptual.two_afc import RankingLoss, TwoAFCBatch, two_afc_score
from diffgan.perceptual.weights import save_weights
from diffgan.training.lr_schedules import warmup_cooldown
from diffgan.training.results import writes_results


class Calibration(pl.LightningModule):
    """Fit non-negative heads to preferences with the network frozen ("lin", Zhang et al. 2018, section 4.2).

    `validate` and `test` report the 2AFC score of the file `weights` as it is.

    Args:
        weights: file written by `diffgan.perceptual.classification`; it names the latent space.
        target: file that network, heads and the statistics of the references are written to (safetensors), at each
            validation.
        optimizer: called with the parameters of the heads and of the ranking loss.
        steps: length of the training.
        cooldown: length of the linear decay of the learning rate at its end, in steps.
        dropout: probability that a squared difference is set to zero in training.
    """

    complete_as_built = True  # `test` needs no checkpoint

    def __init__(
        self,
        weights: Path,
        target: Path,
        optimizer: OptimizerCallable,
        steps: int,
        cooldown: int = 0,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.distance = LatentLPIPS(weights)
        self.distance.heads.requires_grad_(True)
        self.ranking = RankingLoss()
        self.dropout, self.statistics = nn.Dropout(dropout), RunningStatistics()
        self.target, self.optimizer, self.steps, self.cooldown = target, optimizer, steps, cooldown

    def configure_optimizers(self):
        optimizer = self.optimizer([*self.distance.heads.parameters(), *self.ranking.parameters()])
        schedule = LambdaLR(optimizer, warmup_cooldown(0, self.cooldown, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: TwoAFCBatch, _) -> Tensor:
        self.statistics.update(batch.reference)
        loss = self.ranking(*self.distances(batch), batch.preference)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        """One step, then a projection of the heads to non-negative values."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for head in self.distance.heads:
                head.clamp_(min=0)

    def distances(self, batch: TwoAFCBatch) -> tuple[Tensor, Tensor]:
        """Distances (N,) of the two alternatives from the reference; only the heads get a gradient."""
        reference, first, second = (
            self._normalized_taps(latent) for latent in (batch.reference, batch.first, batch.second)
        )
        return self._distance(reference, first), self._distance(reference, second)

    @torch.no_grad()
    def _normalized_taps(self, latent: Tensor) -> list[Tensor]:
        return [normalize_channels(tap, self.distance.eps) for tap in self.distance.taps(latent)]

    def _distance(self, reference: list[Tensor], other: list[Tensor]) -> Tensor:
        """The distance of `LatentLPIPS` from normalised taps, with dropout on the squared differences: (N,)."""
        squares = [self.dropout((a - b).square()) for a, b in zip(reference, other, strict=True)]
        return sum(head_distance(square, head) for square, head in zip(squares, self.distance.heads, strict=True))

    def validation_step(self, batch: TwoAFCBatch, _) -> None:
        self._log_scores(batch, "validation")

    def test_step(self, batch: TwoAFCBatch, _) -> None:
        self._log_scores(batch, "test")

    def _log_scores(self, batch: TwoAFCBatch, stage: str) -> None:
        """2AFC score over all triplets, and for each family of distortions."""
        scores = two_afc_score(*self.distances(batch), batch.preference)
        self.log(f"{stage}/2afc", scores.mean(), prog_bar=True, batch_size=len(scores), sync_dist=True)
        for family in sorted(set(batch.family)):
            in_family = torch.tensor([name == family for name in batch.family], device=scores.device)
            family_scores = scores[in_family]
            self.log(f"{stage}/2afc_{family}", family_scores.mean(), batch_size=len(family_scores), on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        if writes_results(self.trainer):
            self.distance.statistics = self.statistics.value()
            save_weights(self.target, self.distance.as_weights())
