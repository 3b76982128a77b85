"""Stage 2 of the glyph teacher: a text encoder trained to classify the attributes that captions mention.

It is frozen afterwards, as Stable Diffusion's text encoder is. Trained together with the denoiser, the small text
encoder collapsed: for a long time the denoising loss depends little on the caption, and all captions became alike.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import CLIPTextConfig, CLIPTextModel

from diffgan.glyphs.attributes import parse_caption
from diffgan.glyphs.recipe import COLOURS, describe
from diffgan.glyphs.tokenizer import train_tokenizer
from diffgan.glyphs.typefaces import CATEGORIES, CHARACTERS
from diffgan.training.lr_schedules import warmup_cosine
from diffgan.training.results import writes_results

# Classes of each attribute; class 0, before them, stands for an attribute that the caption does not mention.
CLASSES = {
    "character": tuple(CHARACTERS),
    "weight": ("light", "regular", "bold"),
    "slant": ("upright", "italic"),
    "category": CATEGORIES,
    "ink": tuple(COLOURS),
    "ground": tuple(COLOURS),
}


def caption_classes(captions: list[str]) -> Tensor:
    """Classes of the attributes that captions mention: (N, 6) int64, a column for each of CLASSES."""
    return torch.tensor([_classes(caption) for caption in captions])


def _classes(caption: str) -> list[int]:
    attributes = asdict(parse_caption(caption))
    return [_class_of(attributes[name], values) for name, values in CLASSES.items()]


def _class_of(value: str | None, values: tuple[str, ...]) -> int:
    return 1 + values.index(value) if value else 0


class TextEncoderTraining(pl.LightningModule):
    """Train a `CLIPTextModel` with a linear classifier of each attribute on the mean of the token embeddings.

    That mean is the output of a cross-attention with uniform weights, as it is at the start of the next stage.
    Writes `<pipeline>/text_encoder` and `<pipeline>/tokenizer` at each validation.

    Args:
        pipeline: directory of the pipeline that the stages build.
        text_encoder: arguments of `CLIPTextConfig`; `max_position_embeddings` is the length of a prompt in tokens.
        optimizer: called with the parameters.
        steps: length of the cosine schedule.
        warmup: length of its linear warm-up, in steps.
    """

    def __init__(
        self,
        pipeline: Path,
        text_encoder: dict[str, Any],
        optimizer: OptimizerCallable,
        steps: int,
        warmup: int = 100,
    ):
        super().__init__()
        self.pipeline, self.optimizer, self.steps, self.warmup = pipeline, optimizer, steps, warmup
        length = text_encoder["max_position_embeddings"]
        self.tokenizer = train_tokenizer((glyph.caption for glyph in describe("train", 0, range(8000))), length)
        ids = {f"{name}_token_id": getattr(self.tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        self.text_encoder = CLIPTextModel(CLIPTextConfig(vocab_size=len(self.tokenizer), **ids, **text_encoder))
        width = text_encoder["hidden_size"]
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(values)) for values in CLASSES.values())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _logits(self, captions: list[str]) -> list[Tensor]:
        """Logits (N, 1 + classes) of each attribute."""
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        embeddings = self.text_encoder(tokens.input_ids.to(self.device))[0]  # (N, L, D)
        return [head(embeddings.mean(1)) for head in self.heads]

    def training_step(self, captions: list[str], _) -> Tensor:
        classes = caption_classes(captions).to(self.device).unbind(1)
        loss = sum(F.cross_entropy(*pair) for pair in zip(self._logits(captions), classes, strict=True))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(captions))
        return loss

    def validation_step(self, captions: list[str], _) -> None:
        classes = caption_classes(captions).to(self.device)
        predicted = torch.stack([logits.argmax(-1) for logits in self._logits(captions)], dim=1)
        accuracy = (predicted == classes).float().mean()
        self.log("validation/understood", accuracy, prog_bar=True, batch_size=len(captions))

    def on_validation_epoch_end(self) -> None:
        if writes_results(self.trainer):
            self.text_encoder.save_pretrained(self.pipeline / "text_encoder")
            self.tokenizer.save_pretrained(self.pipeline / "tokenizer")
