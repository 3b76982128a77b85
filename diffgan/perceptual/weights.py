"""Files of LatentVGG16, with or without the heads of LatentLPIPS: safetensors that name their latent space."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, folded
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.storage.tensor_files import write_tensors

KIND = "diffgan LatentVGG16 2"
HEAD = "heads."
LPIPS_EPS = 1e-20  # LPIPS adds 1e-10 to the norm of the features; the authors' package 1e-8 to its square


class PerceptualWeights(NamedTuple):
    """network: frozen, in eval mode.  space: the latents it was trained on.  heads: five (C_k,) tensors, or None.
    eps: what is added to the squared norm of the features."""

    network: LatentVGG16
    space: LatentSpace
    heads: list[Tensor] | None = None
    eps: float = LPIPS_EPS


def save_weights(path: Path, weights: PerceptualWeights) -> None:
    """Write a network as it runs in eval mode (batch norm folded) and its heads, whole or not at all."""
    network, space, heads, eps = weights
    network = folded(network)
    shape = {"width": str(network.width), "norm": network.norm, "taps": network.taps}
    shape |= {"left_out": str(network.left_out), "eps": str(eps)}
    header = {"kind": KIND, **shape, "latent_space": json.dumps(space.as_dict())}
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    tensors |= {f"{HEAD}{k}": head.detach() for k, head in enumerate(heads or [])}
    write_tensors(path, tensors, header)


def weights_file(name: Path | str) -> Path:
    """The file of a name: "glyphs" for the weights that ship with the package, else the path itself."""
    return embedded("latent_lpips.safetensors") if str(name) == EMBEDDED else Path(name)


def load_weights(path: Path | str) -> PerceptualWeights:
    """Read what `save_weights` wrote; "glyphs" names the weights that ship with the package.

    Raises:
        UserError: the file is missing, broken, or not such a file.
    """
    path = weights_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights of LatentVGG16 ({error}); make them with `fit`") from error
    if header.get("kind") != KIND:
        raise UserError(f"{path}: is not a LatentVGG16 file of this version")
    space = LatentSpace(**json.loads(header["latent_space"]))
    heads = [tensors.pop(name) for name in sorted(tensors) if name.startswith(HEAD)]
    network = LatentVGG16(
        space.channels, float(header["width"]), header["norm"], header["taps"], int(header["left_out"])
    )
    network.load_state_dict(tensors)
    return PerceptualWeights(network.requires_grad_(False).eval(), space, heads or None, float(header["eps"]))
