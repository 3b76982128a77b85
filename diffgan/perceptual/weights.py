"""Weight files of LatentVGG16, with or without the heads of LatentLPIPS: safetensors that name their latent space."""

import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.latent_space import LatentSpace
from diffgan.perceptual.latent_vgg import NORMS, STAGES, TAPS, LatentVGG16, fold_batch_norm
from diffgan.perceptual.statistics import LatentStatistics
from diffgan.storage.embedded import EMBEDDED, embedded
from diffgan.storage.json_files import parse_object
from diffgan.storage.tensor_files import expected_tensors, first_not_finite, write_tensors
from diffgan.storage.tensor_headers import Expected, TensorsHeader, read_tensors_header, tensors_fault

KIND = "diffgan LatentVGG16 2"
HEAD = "heads."
RANGES = {"width": (1e-3, 4.0), "left_out": (0, len(STAGES)), "eps": (0.0, 1.0)}  # of the numbers in a header
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

    Header, names and shapes are checked before a tensor is read, so a header cannot ask for more memory than the file
    has.

    Raises:
        UserError: the file is missing, damaged, of another kind, or a number in it is out of range or not finite.
    """
    path = weights_file(path)
    header = _read_header(path)
    if header.metadata.get("kind") != KIND:
        raise UserError(f"{path}: is not a LatentVGG16 file of this version")
    settings = _settings(path, header.metadata)
    head_names = sorted(name for name in header.tensors if name.startswith(HEAD))
    with torch.device("meta"):
        _check_tensors(path, header, settings.network(), head_names)
    tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
    if (name := first_not_finite(tensors)) is not None:
        raise UserError(f"{path}: {name} is not finite; restore the file")
    heads = [tensors.pop(name) for name in head_names]
    network = settings.network()
    network.load_state_dict(tensors)
    statistics = _statistics(path, header.metadata, settings.space.channels)
    return PerceptualWeights(
        network.requires_grad_(False).eval(), settings.space, heads or None, settings.eps, statistics
    )


def _statistics(path: Path, metadata: dict[str, str], channels: int) -> LatentStatistics | None:
    """Those of the header, or of the JSON file beside weights whose digest records name; older files have none."""
    beside = path.with_suffix(".statistics.json")
    if "statistics" in metadata:
        return LatentStatistics.read(metadata["statistics"], channels, str(path))
    return LatentStatistics.read(beside.read_text(), channels, str(beside)) if beside.is_file() else None


class _Settings(NamedTuple):
    """What the header of a file says about its network, and `space` and `eps` of `PerceptualWeights`."""

    width: float
    norm: str
    taps: str
    omitted_pools: int
    space: LatentSpace
    eps: float

    def network(self) -> LatentVGG16:
        """A network of this kind with initial weights."""
        return LatentVGG16(self.space.channels, self.width, self.norm, self.taps, self.omitted_pools)


def _read_header(path: Path) -> TensorsHeader:
    try:
        return read_tensors_header(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as weights of LatentVGG16 ({error}); make them with `fit`") from error


def _settings(path: Path, metadata: dict[str, str]) -> _Settings:
    """Raises: UserError if a setting is missing, of another type or out of range."""
    try:
        numbers = {name: float(metadata[name]) for name in RANGES}
        space = LatentSpace(**parse_object(metadata["latent_space"])).checked(str(path))
        names = metadata["norm"], metadata["taps"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its header is none of LatentVGG16 ({first_line(error)})") from error
    for name, (least, most) in RANGES.items():
        if not least <= numbers[name] <= most:
            raise UserError(f"{path}: {name} is {numbers[name]:g} in its header and must be in [{least:g}, {most:g}]")
    if names[0] not in NORMS or names[1] not in TAPS:
        raise UserError(f"{path}: norm is {names[0]!r} and taps {names[1]!r}, not of {NORMS} and {TAPS}")
    return _Settings(numbers["width"], *names, int(numbers["left_out"]), space, numbers["eps"])


def _check_tensors(path: Path, header: TensorsHeader, network: LatentVGG16, head_names: list[str]) -> None:
    """Raises: UserError if a tensor is missing, superfluous, or has another shape than a network of this kind."""
    expected = expected_tensors(network)
    if head_names:
        expected |= {f"{HEAD}{k}": Expected((channels,)) for k, channels in enumerate(network.tap_channels)}
    if fault := tensors_fault(header.tensors, expected):
        raise UserError(f"{path}: {fault}; restore the file")
