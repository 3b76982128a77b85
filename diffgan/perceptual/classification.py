"""Training of LatentVGG16 by classification of latents (paper, section 3.2)."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.perceptual.latent_vgg import OMITTED_POOLS, LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.autoencoders import latent_space
from diffgan.training.lr_schedules import warmup_cosine
from diffgan.training.results import writes_results

UNKNOWN = -1  # label of a sample whose class is not known


class LatentClassifier(nn.Module):
    """`LatentVGG16` with a linear head for each classification task.

    Args:
        network: the features.
        classes: number of classes of each task.
    """

    def __init__(self, network: LatentVGG16, classes: list[int]):
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(nn.Linear(network.tap_channels[-1], count) for count in classes)
        self.dropout = nn.Dropout(0.2)

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> logits (N, classes[q]) of each task q."""
        pooled = self.dropout(self.network(latent)[-1].mean((-2, -1)))  # (N, features)
        return [head(pooled) for head in self.heads]


def initialise_convolutions(network: nn.Module) -> None:
    """He initialisation of every convolution (He et al. 2015), as torchvision's VGG16-BN has it."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@torch.no_grad()
def top_k_accuracy(logits: Tensor, label: Tensor, k: int = 1) -> Tensor:
    """Share of the samples with a known class whose class is among their k largest logits.

    Args:
        logits: (N, classes).
        label: (N,) int64, -1 for an unknown class.
        k: at most the number of classes is used.

    Returns:
        () float32, NaN if no class is known.
    """
    known = label != UNKNOWN
    predicted = logits[known].topk(min(k, logits.shape[1])).indices
    return (predicted == label[known, None]).any(1).float().mean()


def known_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy over the samples with a known class, 0 if there is none.

    Args:
        logits: (N, classes).
        label: (N,) int64, -1 for an unknown class.

    Returns:
        () loss.
    """
    known = (label != UNKNOWN).sum().clamp(min=1)
    return F.cross_entropy(logits, label, ignore_index=UNKNOWN, reduction="sum") / known


class LatentClassificationTraining(pl.LightningModule):
    """Train LatentVGG16 to classify latents; write its weights at every validation.

    Args:
        vae: autoencoder of the latents (a directory, or "owner/model/vae" on the hub); none for pixels.
        target: file that the weights are written to (safetensors).
        classes: number of classes of each task: column q of the batch's label is in [0, classes[q]), or -1 if unknown.
        optimizer: called with the parameters.
        steps: length of the cosine schedule.
        warmup: length of its linear warm-up, in steps.
        width: as in `LatentVGG16`.
        norm: as in `LatentVGG16`.
        omitted_pools: as in `LatentVGG16`.
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
        omitted_pools: int = OMITTED_POOLS,
    ):
        super().__init__()
        self.space = latent_space(vae)
        network = LatentVGG16(self.space.channels, width, norm, omitted_pools=omitted_pools)
        self.classifier = LatentClassifier(network, classes)
        initialise_convolutions(self.classifier)
        self.classifier.to(memory_format=torch.channels_last)
        self.target, self.optimizer, self.steps, self.warmup = target, optimizer, steps, warmup

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        """Sum of the tasks' cross-entropies."""
        logits = self.classifier(batch.latent.to(memory_format=torch.channels_last))
        labels = batch.label.unbind(1)
        loss = sum(known_cross_entropy(*task) for task in zip(logits, labels, strict=True))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        logits, labels = self.classifier(batch.latent), batch.label.unbind(1)
        for task, (task_logits, label) in enumerate(zip(logits, labels, strict=True)):
            self._log_accuracies(task, task_logits, label)

    def _log_accuracies(self, task: int, logits: Tensor, label: Tensor) -> None:
        """Top-1 and top-5 accuracy of one task, unless the batch has no known class."""
        known = int((label != UNKNOWN).sum())
        if not known:
            return
        for k in (1, 5):
            accuracy = top_k_accuracy(logits, label, k)
            self.log(f"validation/top{k}_{task}", accuracy, prog_bar=k == 1, batch_size=known, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if writes_results(self.trainer):
            save_weights(self.target, PerceptualWeights(self.classifier.network, self.space))
