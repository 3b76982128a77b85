"""The authors' weights of E-LatentLPIPS, read into this project's file."""

import pickle
import re
from pathlib import Path

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import STAGES, LatentVGG16, normed_convolutions
from diffgan.perceptual.weights import PerceptualWeights, save_weights

# The latent spaces that the authors published weights for: channels, factor, scale and shift of their autoencoders.
SPACES = {
    "sd15": LatentSpace(4, 8, 0.18215),
    "sd21": LatentSpace(4, 8, 0.18215),
    "sdxl": LatentSpace(4, 8, 0.13025),
    "sd3": LatentSpace(16, 8, 1.5305, 0.0609),
    "flux": LatentSpace(16, 8, 0.3611, 0.1159),
}
EPS = 1e-8  # added to the squared norm of the features
LAYER = re.compile(r"(net\.slice\d+\.(\d+))\.weight")


def convert(checkpoint: Path, output: Path, latents: str) -> None:
    """Turn a checkpoint of the `elatentlpips` package into a weights file of ELatentLPIPS with equal distances.

    Args:
        checkpoint: the package's file, e.g. `sd15_latest_vgg16_tuned.pth`; nothing but tensors is read from it.
        output: file to write (safetensors); must not exist.
        latents: whose latents the checkpoint is for: sd15, sd21, sdxl, sd3 or flux.

    Raises:
        UserError: an unknown latent space, an existing output, or a file that is no such checkpoint.
    """
    if latents not in SPACES:
        raise UserError(f"latents {latents!r} is none of {', '.join(SPACES)}")
    if output.exists():
        raise UserError(f"{output}: exists already; choose another name")
    tensors = _read(checkpoint)
    network = LatentVGG16(SPACES[latents].channels, taps="pool").eval()
    try:
        _fill(network, tensors)
        heads = [tensors[f"lin{k}.model.1.weight"].flatten() for k in range(len(STAGES))]
    except (KeyError, RuntimeError, ValueError) as error:
        problem = f"is no elatentlpips checkpoint for {latents} latents"
        raise UserError(f"{checkpoint}: {problem} ({first_line(error)})") from error
    save_weights(output, PerceptualWeights(network, SPACES[latents], heads, EPS))


def _read(checkpoint: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        return {name: value.float() for name, value in content.items()}
    except (OSError, RuntimeError, EOFError, AttributeError, pickle.UnpicklingError) as error:
        raise UserError(f"{checkpoint}: cannot be read as a checkpoint of tensors ({first_line(error)})") from error


@torch.no_grad()
def _fill(network: LatentVGG16, tensors: dict[str, Tensor]) -> None:
    """Copy convolutions and norms in the order of torchvision's layer numbers, which run through all slices.

    Theirs have convolutions with a bias; a norm in eval mode takes it in as a shift of its mean.
    """
    numbered = {int(match[2]): match[1] for name in tensors if (match := LAYER.fullmatch(name))}
    layers = [numbered[number] for number in sorted(numbered)]
    ours = [pair for stage in network.stages for pair in normed_convolutions(stage)]
    for (conv, norm), theirs, its_norm in zip(ours, layers[::2], layers[1::2], strict=True):
        conv.load_state_dict({"weight": tensors[f"{theirs}.weight"]})
        names = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict({name: tensors[f"{its_norm}.{name}"] for name in names}, strict=False)
        norm.running_mean -= tensors[f"{theirs}.bias"]
