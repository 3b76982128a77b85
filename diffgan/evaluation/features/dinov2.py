"""DINOv2: the features of FD-DINOv2."""

import io
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgan.evaluation.features.inception import resized_bytes
from diffgan.evaluation.features.weights import WeightsFile, require_tensors, sha256_of

NAME, SIDE, PATCH = "dinov2", 224, 14
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
OFFSET = 0.1  # that DINOv2 adds to the number of patches when it interpolates positions
WEIGHTS = WeightsFile(
    "DINOv2 ViT-L/14",
    "dinov2_vitl14_pretrain.pth",
    "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)


class DINOv2Features(nn.Module):
    """Class tokens (N, 1024) of DINOv2 ViT-L/14, the features of FD-DINOv2 (Stein et al., arXiv 2306.04675).

    Images are resized to 224 pixels a side by antialiased bicubic interpolation. The network is timm's, because
    torch-fidelity's runs code that torch hub downloads and takes no file of weights. Positions are interpolated as
    facebookresearch/dinov2 does.

    Args:
        weights: a file of the published format; by default `dinov2_vitl14_pretrain.pth` in torch hub's folder, where
            it is downloaded to. No digest of it is published, so features have the name `dinov2` if their weights lie
            there, and another one if they are of a file that is named here.
        model: timm's name of the network.

    Raises:
        UserError: the weights are missing and cannot be downloaded, or are no weights of this network.
    """

    def __init__(self, weights: Path | None = None, model: str = "vit_large_patch14_dinov2"):
        super().__init__()
        file = WEIGHTS.find(weights)
        data = WEIGHTS.read(file)
        digest = sha256_of(data)
        self.name = NAME if weights is None else f"{NAME}_{digest[:8]}"
        self.identity = f"{NAME} {digest[:16]} bicubic {SIDE}"
        self.network = timm.create_model(model, pretrained=False, num_classes=0, img_size=SIDE, global_pool="token")
        try:
            state = require_tensors(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
            self.network.load_state_dict(_for_side(state))
        except Exception as error:  # a file that is something else can end in any
            raise WEIGHTS.error(file, error) from error
        self.network.requires_grad_(False).eval()
        for name, values in (("mean", MEAN), ("deviation", DEVIATION)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    @staticmethod
    def missing_weights() -> list[str]:
        """As `registry.missing_weights`."""
        return WEIGHTS.missing()

    def train(self, mode: bool = True) -> "DINOv2Features":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) uint8 -> (N, D) float32."""
        pixels = resized_bytes(images, SIDE).float() / 255
        return self.network((pixels - self.mean) / self.deviation)


def _for_side(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A published state dictionary for images of SIDE pixels: without its mask token, positions interpolated."""
    others = {name: value for name, value in state.items() if name not in ("mask_token", "pos_embed")}
    return others | {"pos_embed": interpolated_positions(state["pos_embed"], SIDE // PATCH)}


def interpolated_positions(positions: Tensor, patches: int) -> Tensor:
    """Embeddings of positions (1, 1 + M^2, D), the class token first -> (1, 1 + patches^2, D).

    As in facebookresearch/dinov2, `interpolate_pos_encoding`: bicubic, not antialiased, the scale a little larger than
    patches / M.
    """
    side = round((positions.shape[1] - 1) ** 0.5)
    if side == patches:
        return positions
    grid = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, M, M)
    scale = (patches + OFFSET) / side
    resized = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :1], resized.flatten(2).mT], 1)
