"""The stage that trains LatentVGG16: classification of latents."""

from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.latents import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.schedules import warmup_cosine


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
def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """Share of the rows with a known answer (target >= 0) whose largest logit is it: () float32."""
    known = target >= 0
    return (logits[known].argmax(-1) == target[known]).float().mean()


class LatentVGGTraining(pl.LightningModule):
    """Train LatentVGG16 to answer the questions of the labels; write its weights at every validation.

    Args:
        vae: directory of the autoencoder whose latents are classified; names the latent space of the weights.
        target: file that the weights are written to (safetensors).
        classes: number of answers of each question: column q of the batch's label is in [0, classes[q]), or -1.
        optimizer: called with the parameters.
        steps, warmup: length of the cosine schedule and of its linear rise, in steps.
        width: factor on VGG16's channel counts.
    """

    def __init__(
        self,
        vae: Path,
        target: Path,
        classes: list[int],
        optimizer: OptimizerCallable,
        steps: int,
        warmup: int = 100,
        width: float = 1.0,
    ):
        super().__init__()
        self.space = LatentSpace.of_config(AutoencoderKL.load_config(vae))
        self.classifier = LatentClassifier(LatentVGG16(self.space.channels, width), classes)
        initialise(self.classifier)
        self.classifier.to(memory_format=torch.channels_last)
        self.target, self.optimizer, self.steps, self.warmup = target, optimizer, steps, warmup

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        logits = self.classifier(batch.latent.to(memory_format=torch.channels_last))
        losses = [F.cross_entropy(a, y, ignore_index=-1) for a, y in zip(logits, batch.label.unbind(1), strict=True)]
        loss = torch.stack(losses).nansum()  # a question without one known answer in the batch has no loss
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        logits = self.classifier(batch.latent)
        for question, (answer, target) in enumerate(zip(logits, batch.label.unbind(1), strict=True)):
            known = int((target >= 0).sum())
            if known:
                self.log(f"validation/top1_{question}", accuracy(answer, target), prog_bar=True, batch_size=known)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            save_weights(self.target, PerceptualWeights(self.classifier.network, self.space))
