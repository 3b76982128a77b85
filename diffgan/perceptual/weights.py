"""Weight files of LatentVGG16, with or without the heads of LatentLPIPS: safetensors that name their latent space."""

import json
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import LatentVGG16, fold_batch_norm
from diffgan.perceptual.statistics import LatentStatistics
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.storage.tensor_files import write_tensors

KIND = "diffgan LatentVGG16 2"
HEAD = "heads."
# Weights of the package by name: of the glyph latents, and of the same network for pixels.
SHIPPED = {EMBEDDED: "latent_lpips.safetensors", f"{EMBEDDED}-pixels": "pixel_lpips.safetensors"}
LPIPS_EPS = 1e-20  # LPIPS adds 1e-10 to the norm of the features; the authors' package adds 1e-8 to its square


class PerceptualWeights(NamedTuple):
    """The content of a weight file.

    network: frozen, in eval mode.
    space: latent space it was trained on.
    heads: five tensors (C_k,), or None.
    eps: what is added to the squared norm of the features.
    statistics: of the latents that the heads were calibrated on, or None.
    """

    network: LatentVGG16
    space: LatentSpace
    heads: list[Tensor] | None = None
    eps: float = LPIPS_EPS
    statistics: LatentStatistics | None = None


def save_weights(path: Path, weights: PerceptualWeights) -> None:
    """Write a network as it runs in eval mode (batch norm folded) and its heads, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    network = fold_batch_norm(weights.network)
    header = {
        "kind": KIND,
        "width": str(network.width),
        "norm": network.norm,
        "taps": network.taps,
        "left_out": str(network.omitted_pools),
        "eps": str(weights.eps),
        "latent_space": json.dumps(weights.space.as_dict()),
    }
    if weights.statistics is not None:
        header["statistics"] = weights.statistics.text()
    tensors = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    tensors |= {f"{HEAD}{k}": head.detach() for k, head in enumerate(weights.heads or [])}
    write_tensors(path, tensors, header)


def weights_file(name: Path | str) -> Path:
    """The file that a name stands for: one of `SHIPPED`, any other name for itself."""
    return embedded(SHIPPED[str(name)]) if str(name) in SHIPPED else Path(name)


def load_weights(path: Path | str) -> PerceptualWeights:
    """Read a file of `save_weights`; "glyphs" names the weights of the package.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    path = weights_file(path)
    header, tensors = _read(path)
    if header.get("kind") != KIND:
        raise UserError(f"{path}: is not a LatentVGG16 file of this version")
    space = LatentSpace(**json.loads(header["latent_space"]))
    heads = [tensors.pop(name) for name in sorted(tensors) if name.startswith(HEAD)]
    network = LatentVGG16(
        space.channels, float(header["width"]), header["norm"], header["taps"], int(header["left_out"])
    )
    network.load_state_dict(tensors)
    network, eps = network.requires_grad_(False).eval(), float(header["eps"])
    return PerceptualWeights(network, space, heads or None, eps, _statistics(path, header, space.channels))


def _statistics(path: Path, header: dict[str, str], channels: int) -> LatentStatistics | None:
    """Those of the header, or of the JSON file beside weights whose digest records name; older files have none."""
    beside = path.with_suffix(".statistics.json")
    if "statistics" in header:
        return LatentStatistics.read(header["statistics"], channels, str(path))
    return LatentStatistics.read(beside.read_text(), channels, str(beside)) if beside.is_file() else None


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and float32 tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            return file.metadata() or {}, tensors
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read as weights of LatentVGG16 ({error}); make them with `fit`") from error
