"""DreamSim: embeddings whose cosine distance follows human judgement of similarity. An extra of the package."""

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from diffgan.errors import UserError, first_line
from diffgan.evaluation.features.base import DREAMSIM_FEATURES as NAME
from diffgan.evaluation.features.inception import resized_bytes

SIDE = 224
PACKAGE = "dreamsim"
FILES = (  # that the package looks for in its folder
    *("dino_vitb16_pretrain.pth", "open_clip_vitb16_pretrain.pth.tar", "clip_vitb16_pretrain.pth.tar"),
    *("dino_vitb16_lora", "open_clip_vitb16_lora", "clip_vitb16_lora"),
)


class DreamSimFeatures(nn.Module):
    """Embeddings of DreamSim's ensemble (Fu et al., arXiv 2306.09344), by the package `dreamsim`.

    Images are resized to 224 pixels a side by antialiased bicubic interpolation. The distance of two images is one
    minus the cosine of their embeddings.

    Args:
        weights: folder of the package's weights, which it downloads there if they are missing; by default `dreamsim`
            in torch hub's folder. The package unpickles them: name only a folder that you trust.

    Raises:
        UserError: the package is not installed, or its weights are missing and cannot be downloaded.
    """

    name = NAME
    identity = f"dreamsim ensemble bicubic {SIDE}"

    def __init__(self, weights: Path | None = None):
        super().__init__()
        folder = _usual_folder() if weights is None else Path(weights)
        try:
            from dreamsim import dreamsim
        except ImportError as error:
            raise UserError(
                "metrics dreamsim_n and dreamdiv: the package dreamsim is not installed; run pip install "
                "'diffgan[dreamsim]', or list distance_n and diversity, which use the evaluation's own features"
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.network, _ = dreamsim(pretrained=True, device="cpu", cache_dir=str(folder))
        except Exception as error:  # download, archive and file errors of many kinds
            raise UserError(
                f"{folder}: the weights of DreamSim are missing and cannot be downloaded ({first_line(error)}); "
                "put the unpacked archive of github.com/ssundaram21/dreamsim there, or list distance_n and diversity"
            ) from error

    @staticmethod
    def missing_weights() -> list[str]:
        """As `registry.missing_weights`."""
        missing, folder = [], _usual_folder()
        if find_spec(PACKAGE) is None:
            missing.append(f"{PACKAGE}: a package that is not installed; pip install 'diffgan[dreamsim]'")
        if not all((folder / file).exists() for file in FILES):
            missing.append(f"{folder}: the weights of DreamSim, published at github.com/ssundaram21/dreamsim")
        return missing

    def to(self, device: torch.device | str) -> "DreamSimFeatures":
        """Move the network, also the parts that the package keeps in a plain list."""
        for part in self.network.extractor_list:
            part.model.to(device)
        return super().to(device)

    def train(self, mode: bool = True) -> "DreamSimFeatures":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> (N, D) float32."""
        pixels = resized_bytes(images, SIDE).float() / 255
        return self.network.embed(pixels).reshape(len(images), -1).float()


def _usual_folder() -> Path:
    return Path(torch.hub.get_dir()) / "dreamsim"
