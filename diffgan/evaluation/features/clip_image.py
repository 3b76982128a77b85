"""CLIP's image embeddings: the features of CMMD."""

import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, MODEL_URLS, build_model

from diffgan.evaluation.features.base import CMMD_FEATURES as NAME
from diffgan.evaluation.features.inception import resized_bytes
from diffgan.evaluation.features.weights import WeightsFile, require_tensors, sha256_of

MODEL = "clip-vit-l-14-336px"
SHA256 = MODEL_METADATA[MODEL]["hash"]
WEIGHTS = WeightsFile("CLIP ViT-L/14 at 336 pixels", f"{MODEL}-{SHA256}.pt", MODEL_URLS[MODEL], SHA256)
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class CLIPImageFeatures(nn.Module):
    """Image embeddings (N, 768) of OpenAI's CLIP ViT-L/14 at 336 pixels, in torch-fidelity's network.

    Images are resized to the network's side by antialiased bicubic interpolation, as CMMD does (Jayasumana et al.,
    arXiv 2401.09603). torch-fidelity's own extractor would resize by TensorFlow's bilinear interpolation without
    antialiasing.

    Args:
        weights: OpenAI's file; by default the one in torch hub's folder, under torch-fidelity's name, where it is
            downloaded to. A state dictionary of other weights is accepted, but the features then have another name.

    Raises:
        UserError: the weights are missing and cannot be downloaded, or are no weights of such a network.
    """

    def __init__(self, weights: Path | None = None):
        super().__init__()
        file = WEIGHTS.find(weights)
        data = WEIGHTS.read(file)
        digest = sha256_of(data)
        self.name = NAME if digest == SHA256 else f"{NAME}_{digest[:8]}"
        try:
            network = build_model(_state(data, digest), torch.float32)
        except Exception as error:  # a file that is something else can end in any
            raise WEIGHTS.error(file, error) from error
        self.network = network.visual
        self.side = self.network.input_resolution
        self.identity = f"{NAME} {digest[:16]} bicubic {self.side}"
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @staticmethod
    def missing_weights() -> list[str]:
        """As `registry.missing_weights`."""
        return WEIGHTS.missing()

    def train(self, mode: bool = True) -> "CLIPImageFeatures":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> (N, D) float32, not normalized."""
        pixels = resized_bytes(images, self.side).float() / 255
        return self.network((pixels - self.mean) / self.deviation).float()


def _state(data: bytes, digest: str) -> dict[str, Tensor]:
    """The state dictionary of a file. OpenAI's is TorchScript, which can run code: it is opened by its digest only."""
    if digest == SHA256:
        return torch.jit.load(io.BytesIO(data), map_location="cpu").state_dict()
    return dict(require_tensors(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)))
