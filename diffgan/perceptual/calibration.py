"""The stage that calibrates LatentLPIPS: heads fitted to two-alternative forced-choice judgements."""

from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.perceptual.heads import head_distance, unit
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.two_afc import Judgements, RankingLoss, two_afc
from diffgan.perceptual.weights import save_weights
from diffgan.training.lr_schedules import warmup_cooldown


class Calibration(pl.LightningModule):
    """Fit non-negative heads to judgements with the network frozen (Zhang et al. 2018, section 4.2, "lin").

    `validate` and `test` score the file `weights` as it is, by the share of judges it agrees with.

    Args:
        weights: a file of the stage `latent_vgg`; names the latent space.
        target: file that network and heads are written to (safetensors).
        optimizer: called with the heads' and the ranking network's parameters.
        steps, cooldown: length of the training and of its final linear fall of the learning rate.
        dropout: share of the squared differences left out in training.
    """

    complete_as_built = True  # to be tested it needs no checkpoint

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
        self.dropout = nn.Dropout(dropout)
        self.target, self.optimizer, self.steps, self.cooldown = target, optimizer, steps, cooldown

    def configure_optimizers(self):
        optimizer = self.optimizer([*self.distance.heads.parameters(), *self.ranking.parameters()])
        schedule = LambdaLR(optimizer, warmup_cooldown(0, self.cooldown, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch: Judgements, _) -> Tensor:
        loss = self.ranking(*self.distances(batch), batch.judge)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for head in self.distance.heads:
                head.clamp_(min=0)

    def distances(self, batch: Judgements) -> tuple[Tensor, Tensor]:
        """Distances (N,) of the two alternatives from the reference; the heads carry the gradient."""
        with torch.no_grad():
            reference, first, second = (
                [unit(tap, self.distance.eps) for tap in self.distance.taps(x)]
                for x in (batch.reference, batch.first, batch.second)
            )
        return self._headed(reference, first), self._headed(reference, second)

    def _headed(self, reference: list[Tensor], other: list[Tensor]) -> Tensor:
        squares = [self.dropout((a - b).square()) for a, b in zip(reference, other, strict=True)]
        return sum(head_distance(square, head) for square, head in zip(squares, self.distance.heads, strict=True))

    def validation_step(self, batch: Judgements, _) -> None:
        self._log_scores(batch, "validation")

    def test_step(self, batch: Judgements, _) -> None:
        self._log_scores(batch, "test")

    def _log_scores(self, batch: Judgements, stage: str) -> None:
        """2AFC score over all judgements and by family of distortions."""
        scores = two_afc(*self.distances(batch), batch.judge)
        self.log(f"{stage}/2afc", scores.mean(), prog_bar=True, batch_size=len(scores), sync_dist=True)
        for family in sorted(set(batch.family)):
            own = scores[torch.tensor([name == family for name in batch.family], device=scores.device)]
            self.log(f"{stage}/2afc_{family}", own.mean(), batch_size=len(own), on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking and self.trainer.state.fn == "fit":
            save_weights(self.target, self.distance.as_weights())
