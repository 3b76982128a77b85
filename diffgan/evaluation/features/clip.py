"""CLIP: the similarity of an image and a caption."""

from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
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
            problem = f"clip_model {model}, clip_weights {weights}: cannot be loaded ({first_line(error)})"
            raise UserError(f"{problem}; {_remedy(model, weights)}") from error
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


# ---- where the weights are ----


def missing_weights(model: str, weights: str) -> list[str]:
    """One line if the weights are not on this machine, else none; nothing is loaded or downloaded.

    Args:
        model, weights: as of `CLIPSimilarity`.
    """
    if ":" in model:  # "hf-hub:..." or "local-dir:...": open_clip takes the weights that are there
        return []
    repository, names = _hub_files(model, weights)
    if repository is None:
        return [] if Path(weights).is_file() else [f"{weights}: no such file, and no weights of CLIP {model} by name"]
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return []
    published = f"published at huggingface.co/{repository}"
    return [f"{_hub_folder(repository)}: the weights {weights} of CLIP {model}, {published}"]


def _hub_files(model: str, weights: str) -> tuple[str | None, list[str]]:
    """The repository of weights that open_clip has a name for, and the files there of which it loads the first."""
    source = open_clip.get_pretrained_cfg(model.replace("/", "-"), weights).get("hf_hub")
    if not source:
        return None, []
    repository, _, name = source.rpartition("/")
    if name:
        return repository, [str(Path(name).with_suffix(".safetensors")), name]
    return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]


def _hub_folder(repository: str) -> Path:
    """Where the hub's cache keeps a repository."""
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def _remedy(model: str, weights: str) -> str:
    """What a user can do who has no such weights, or none that can be loaded."""
    repository, _ = _hub_files(model, weights)
    if repository is None or not missing_weights(model, weights):
        return "name a model of open_clip, and its name of the weights or their file"
    return (
        f"download {repository} elsewhere and copy that machine's folder to {_hub_folder(repository)}, or give the "
        "protocol a file of the weights (clip_weights: FILE, another digest), or leave clip_score out of its `metrics`"
    )
