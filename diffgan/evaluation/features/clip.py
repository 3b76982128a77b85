"""CLIP: the similarity of an image and a caption."""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgan.errors import UserError, first_line

PREFIX = "A photo depicts "


class CLIPSimilarity(nn.Module):
    """Cosine of the embeddings of an image and of "A photo depicts <caption>" (Hessel et al., arXiv 2104.08718).

    Captions that are too long are truncated.

    Args:
        model: name of a model of open_clip, e.g. "ViT-g-14".
        weights: its weights by open_clip's name, e.g. "laion2b_s12b_b42k" (downloaded), or a file.

    Raises:
        UserError: there is no such model, or its weights cannot be loaded.
    """

    def __init__(self, model: str, weights: str):
        super().__init__()
        try:
            self.network = open_clip.create_model(model, pretrained=weights).requires_grad_(False).eval()
            self.tokenizer = open_clip.get_tokenizer(model)
        except Exception as error:  # hub, file and model errors of many kinds
            reason = first_line(error)
            raise UserError(
                f"clip_model {model}, clip_weights {weights}: cannot be loaded ({reason}); where there is no network, "
                "name a file of the weights"
            ) from error
        size = self.network.visual.image_size
        self.size = size if isinstance(size, tuple) else (size, size)
        colours = (self.network.visual.image_mean, self.network.visual.image_std)
        for name, values in zip(("mean", "deviation"), colours, strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "CLIPSimilarity":
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Square images (N, 3, H, H) uint8 and N captions -> (N,) float32 in [-1, 1]."""
        pixels = F.interpolate(images.float(), self.size, mode="bicubic", antialias=True, align_corners=False)
        pixels = (pixels.clamp(0, 255) / 255 - self.mean) / self.deviation
        tokens = self.tokenizer([PREFIX + prompt for prompt in prompts]).to(images.device)
        return F.cosine_similarity(self.network.encode_image(pixels), self.network.encode_text(tokens)).float()
