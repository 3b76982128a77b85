"""The Inception network of FID: the only features whose distance may carry that name."""

import hashlib
import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from diffgan.errors import UserError, first_line
from diffgan.evaluation.features.base import FID_FEATURES as NAME

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # of the weights of 2015-12-05
SIDE = 299


class InceptionFeatures(nn.Module):
    """Pooled features (N, 2048) of the Inception v3 that FID is defined with, in torch-fidelity's conversion.

    Images are resized to 299 pixels a side by antialiased bicubic interpolation, as clean-fid does (Parmar et al.,
    arXiv 2104.11222; mingukkang/GigaGAN evaluates with it), and rounded to bytes again.

    Args:
        weights: `weights-inception-2015-12-05-6726825d.pth`; by default the file of that name in torch hub's folder,
            where it is downloaded to. Weights with other values are accepted, but the features then have another name.

    Raises:
        UserError: the weights are missing and cannot be downloaded, or are no weights of this network.
    """

    def __init__(self, weights: Path | None = None):
        super().__init__()
        file = hub_file() if weights is None else Path(weights)
        if weights is None and not file.is_file():
            _download(file)
        data = _read(file)
        digest = hashlib.sha256(data).hexdigest()
        self.name = NAME if digest == SHA256 else f"{NAME}_{digest[:8]}"
        self.identity = f"{NAME} {digest[:16]} bicubic {SIDE}"
        self.network = _network(file, data)

    def train(self, mode: bool = True) -> "InceptionFeatures":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> (N, 2048) float32."""
        resized = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        return self.network(resized.round().clamp(0, 255).to(torch.uint8))[0]


def hub_file() -> Path:
    """Where torch hub keeps the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]


def _download(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(file), hash_prefix=SHA256[:8])
    except (OSError, RuntimeError) as error:
        reason = first_line(error)
        raise UserError(
            f"{file}: the weights of FID's Inception are missing and cannot be downloaded ({reason}); "
            f"fetch {URL_INCEPTION_V3} elsewhere and put it there"
        ) from error


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"{file}: the weights of FID's Inception cannot be read ({error.strerror})") from error


def _network(file: Path, data: bytes) -> FeatureExtractorInceptionV3:
    """The network with the weights of a file, which is read without unpickling objects; the library gets a copy."""
    try:
        copy = io.BytesIO()
        torch.save(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True), copy)
        copy.seek(0)
        return FeatureExtractorInceptionV3(NAME, ["2048"], feature_extractor_weights_path=copy)
    except Exception as error:  # a file that is something else can end in any
        reason = first_line(error)
        raise UserError(f"{file}: holds no weights of FID's Inception ({reason}); remove it to download it") from error
