"""The Inception network of FID: the only features whose distance may carry that name."""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from diffgan.evaluation.features.base import FID_FEATURES as NAME
from diffgan.evaluation.features.weights import WeightsFile, require_tensors, sha256_of

SIDE = 299
WEIGHTS = WeightsFile(  # of 2015-12-05
    "FID's Inception",
    URL_INCEPTION_V3.rsplit("/", 1)[1],
    URL_INCEPTION_V3,
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)


class InceptionFeatures(nn.Module):
    """Pooled features (N, 2048) of the Inception v3 that FID is defined with, in torch-fidelity's conversion.

    Images are resized by `resized_bytes`.

    Args:
        weights: `weights-inception-2015-12-05-6726825d.pth`; by default the file of that name in torch hub's folder,
            where it is downloaded to. Weights with other values are accepted, but the features then have another name.

    Raises:
        UserError: the weights are missing and cannot be downloaded, or are no weights of this network.
    """

    def __init__(self, weights: Path | None = None):
        super().__init__()
        file = WEIGHTS.find(weights)
        data = WEIGHTS.read(file)
        digest = sha256_of(data)
        self.name = NAME if digest == WEIGHTS.sha256 else f"{NAME}_{digest[:8]}"
        self.identity = f"{NAME} {digest[:16]} bicubic {SIDE}"
        self.network = _network(file, data)

    @staticmethod
    def missing_weights() -> list[str]:
        """As `registry.missing_weights`."""
        return WEIGHTS.missing()

    def train(self, mode: bool = True) -> "InceptionFeatures":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> (N, 2048) float32."""
        return self.network(resized_bytes(images, SIDE))[0]


def resized_bytes(images: Tensor, side: int) -> Tensor:
    """Images (N, 3, H, W) uint8 -> (N, 3, side, side) uint8 by antialiased bicubic interpolation.

    It is clean-fid's resizing (Parmar et al., arXiv 2104.11222; mingukkang/GigaGAN evaluates with it) and then rounded
    to bytes, which torch-fidelity's network takes; clean-fid does not round.
    """
    resized = F.interpolate(images.float(), (side, side), mode="bicubic", antialias=True, align_corners=False)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _network(file: Path, data: bytes) -> FeatureExtractorInceptionV3:
    """The network with the weights of a file, which is read without unpickling objects; the library gets a copy."""
    try:
        copy = io.BytesIO()
        torch.save(require_tensors(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)), copy)
        copy.seek(0)
        return FeatureExtractorInceptionV3(NAME, ["2048"], feature_extractor_weights_path=copy)
    except Exception as error:  # a file that is something else can end in any
        raise WEIGHTS.error(file, error) from error
