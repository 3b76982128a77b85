"""The weights of the authors' package `elatentlpips`, read as weights of ELatentLPIPS."""

import re
from pathlib import Path

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, conv_norm_pairs
from diffgan.perceptual.weights import PerceptualWeights
from diffgan.storage.tensor_files import first_not_finite

# Latent spaces that the authors published weights for: channels, factor, scale and shift of their autoencoders.
SPACES = {
    "sd15": LatentSpace(4, 8, 0.18215),
    "sd21": LatentSpace(4, 8, 0.18215),
    "sdxl": LatentSpace(4, 8, 0.13025),
    "sd3": LatentSpace(16, 8, 1.5305, 0.0609),
    "flux": LatentSpace(16, 8, 0.3611, 0.1159),
}
EPS = 1e-8  # added to the squared norm of the features
LAYER_WEIGHT = re.compile(r"(net\.slice\d+\.(\d+))\.weight")


def load_official(checkpoint: Path, latents: str) -> PerceptualWeights:
    """Read a checkpoint of the `elatentlpips` package.

    Args:
        checkpoint: file of the package, e.g. `sd15_latest_vgg16_tuned.pth`; only tensors are read from it.
        latents: one of SPACES.

    Returns:
        Network, latent space and heads with the distances of the package.

    Raises:
        UserError: an unknown latent space, or a file that is no such checkpoint.
    """
    if latents not in SPACES:
        raise UserError(f"latents {latents!r} is none of {', '.join(SPACES)}")
    tensors = _read(checkpoint)
    network = LatentVGG16(SPACES[latents].channels, taps="pool").eval()
    try:
        _copy_layers(tensors, network)
        heads = [tensors[f"lin{k}.model.1.weight"].reshape(channels) for k, channels in enumerate(network.tap_channels)]
    except (KeyError, RuntimeError, ValueError) as error:
        problem = f"is no elatentlpips checkpoint for {latents} latents"
        raise UserError(f"{checkpoint}: {problem} ({first_line(error)})") from error
    if (name := first_not_finite(tensors)) is not None:
        raise UserError(f"{checkpoint}: {name} is not finite; download the file again")
    return PerceptualWeights(network, SPACES[latents], heads, EPS)


def _read(checkpoint: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch checkpoint by name, in float32; nothing else is unpickled."""
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return {name: value.float() for name, value in content.items()}
    except Exception as error:  # torch.load raises many kinds for other files
        raise UserError(f"{checkpoint}: cannot be read as a checkpoint of tensors ({first_line(error)})") from error


@torch.no_grad()
def _copy_layers(tensors: dict[str, Tensor], network: LatentVGG16) -> None:
    """Copy convolutions and batch norms in the order of torchvision's layer numbers, which run through all slices.

    The convolutions of the package have a bias. A batch norm in eval mode absorbs it as a shift of its mean.
    """
    matches = [match for name in tensors if (match := LAYER_WEIGHT.fullmatch(name))]
    layers = [match[1] for match in sorted(matches, key=lambda match: int(match[2]))]
    pairs = [pair for stage in network.stages for pair in conv_norm_pairs(stage)]
    for (conv, norm), conv_name, norm_name in zip(pairs, layers[::2], layers[1::2], strict=True):
        conv.load_state_dict({"weight": tensors[f"{conv_name}.weight"]})
        fields = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict({field: tensors[f"{norm_name}.{field}"] for field in fields}, strict=False)
        norm.running_mean -= tensors[f"{conv_name}.bias"]
