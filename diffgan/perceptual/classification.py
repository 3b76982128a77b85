"""The stage that trains LatentVGG16: classification of latents."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.perceptual.latent_vgg import LEFT_OUT, LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.autoencoders import latent_space
from diffgan.training.lr_schedules import warmup_cosine


class LatentClassifier(nn.Module):
    """`LatentVGG16` with a linear head for each question asked of the latent.

    Args:
        network: the features.
        classes: number of answers of each question.
    """

    def __init__(self, network: LatentVGG16, classes: list[int]):
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(nn.Linear(network.tap_channels[-1], count) for count in classes)
        self.dropout = nn.Dropout(0.2)

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> logits (N, classes[q]) of every question q."""
        pooled = self.dropout(self.network(latent)[-1].mean((-2, -1)))  # (N, features)
        return [head(pooled) for head in self.heads]


def initialise(network: nn.Module) -> None:
    """He initialisation of every convolution, as the VGG recipe with batch norm uses."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def accuracy(logits: Tensor, target: Tensor, best: int = 1) -> Tensor:
    """Share of the rows with a known answer (target >= 0) that is among their `best` largest logits: () float32."""
    known = target >= 0
    top = logits[known].topk(min(best, logits.shape[1])).indices
    return (top == target[known, None]).any(1).float().mean()


def known_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy of the rows with a known answer (target >= 0), 0 where there is none."""
    known = (target >= 0).sum().clamp(min=1)
    return F.cross_entropy(logits, target, ignore_index=-1, reduction="sum") / known


class LatentVGGTraining(pl.LightningModule):
    """Train LatentVGG16 to answer the questions of the labels; write its weights at every validation.

    Args:
        vae: autoencoder whose latents are classified (a directory, or "owner/model/vae" on the hub); none for pixels.
        target: file that the weights are written to (safetensors).
        classes: number of answers of each question: column q of the batch's label is in [0, classes[q]), or -1.
        optimizer: called with the parameters.
        steps, warmup: length of the cosine schedule and of its linear rise, in steps.
        width, norm, left_out: of `LatentVGG16`.
    """

    def __init__(
        self,
        vae: str | None,
        target: Path,
        classes: list[int],
        optimizer: OptimizerCallable,
        steps: int,
        warmup: int = 100,
        width: float = 1.0,
        norm: str = "batch",
        left_out: int = LEFT_OUT,
    ):
        super().__init__()
        self.space = latent_space(vae)
        network = LatentVGG16(self.space.channels, width, norm, left_out=left_out)
        self.classifier = LatentClassifier(network, classes)
        initialise(self.classifier)
        self.classifier.to(memory_format=torch.channels_last)
        self.target, self.optimizer, self.steps, self.warmup = target, optimizer, steps, warmup

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        logits = self.classifier(batch.latent.to(memory_format=torch.channels_last))
        loss = sum(known_cross_entropy(a, y) for a, y in zip(logits, batch.label.unbind(1), strict=True))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        logits = self.classifier(batch.latent)
        for question, (answer, target) in enumerate(zip(logits, batch.label.unbind(1), strict=True)):
            known = int((target >= 0).sum())
            for best in (1, 5) if known else ():
                name, share = f"validation/top{best}_{question}", accuracy(answer, target, best)
                self.log(name, share, prog_bar=best == 1, batch_size=known, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            save_weights(self.target, PerceptualWeights(self.classifier.network, self.space))
