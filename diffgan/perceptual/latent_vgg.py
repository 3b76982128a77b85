"""VGG16 on latents: the features that the latent perceptual distance compares."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffgan.errors import UserError
from diffgan.files import EMBEDDED, embedded, write_tensors
from diffgan.latents import LatentSpace

# Width and number of convolutions of VGG16's five stages (Simonyan and Zisserman 2015, configuration D).
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
POOLED_BEFORE = (4,)  # the first three max-pools are left out: a latent is already small (paper, section 3.2)


class LatentVGG16(nn.Module):
    """VGG16 with batch norm on latents, its first three max-pools left out; five taps, one after each stage.

    Args:
        channels: channels of the latent.
        width: factor on VGG16's channel counts.
    """

    def __init__(self, channels: int, width: float = 1.0):
        super().__init__()
        self.channels, self.width = channels, width
        self.stages = nn.ModuleList()
        before = channels
        for index, (full, convolutions) in enumerate(STAGES):
            after = max(1, round(full * width))
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if index in POOLED_BEFORE else []
            for _ in range(convolutions):
                layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
                before = after
            self.stages.append(nn.Sequential(*layers))
        self.features = before

    def forward(self, latent: Tensor) -> list[Tensor]:
        """latent: (N, C, H, W) -> five feature maps, the last at half the resolution."""
        taps = []
        for stage in self.stages:
            latent = stage(latent)
            taps.append(latent)
        return taps


def save_vgg(network: LatentVGG16, space: LatentSpace, path: Path) -> None:
    """Write the weights with the latent space they belong to in the header, whole or not at all."""
    header = {"kind": "LatentVGG16", "width": str(network.width), "latent_space": json.dumps(space.as_dict())}
    write_tensors(path, network.state_dict(), header)


def load_vgg(path: Path) -> tuple[LatentVGG16, LatentSpace]:
    """Read what `save_vgg` wrote ("glyphs": the weights that ship): a frozen network in eval mode, its latent space.

    Raises:
        UserError: the file is missing, broken, or no LatentVGG16.
    """
    path = embedded("latent_vgg.safetensors") if str(path) == EMBEDDED else path
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as LatentVGG16 weights ({error}); make it with latent_vgg.yaml"
        ) from error
    if header.get("kind") != "LatentVGG16":
        raise UserError(f"{path}: is not a LatentVGG16 file")
    space = LatentSpace(**json.loads(header["latent_space"]))
    network = LatentVGG16(space.channels, float(header["width"]))
    network.load_state_dict(weights)
    return network.requires_grad_(False).eval(), space


class LatentClassifier(nn.Module):
    """`LatentVGG16` with a linear head for each question asked of the latent.

    Args:
        network: the features.
        classes: number of answers of each question.
    """

    def __init__(self, network: LatentVGG16, classes: list[int]):
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(nn.Linear(network.features, count) for count in classes)
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
