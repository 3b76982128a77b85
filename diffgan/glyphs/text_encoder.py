"""Stage 2 of the glyph teacher: a text encoder that knows what captions say. It stays frozen afterwards.

Stable Diffusion's text encoder is trained on captions before the denoiser, too. Trained together with the denoiser, the
small one collapsed: the image loss says little about the caption for a long time, and every caption ended up alike.
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

from diffgan.glyphs.attributes import asked
from diffgan.glyphs.recipe import COLOURS, describe
from diffgan.glyphs.tokenizer import train_tokenizer
from diffgan.glyphs.typefaces import CATEGORIES, CHARACTERS
from diffgan.training.lr_schedules import warmup_cosine

# What a caption may say; class 0 of each is that it says nothing of it.
ANSWERS = {
    "character": tuple(CHARACTERS),
    "weight": ("light", "regular", "bold"),
    "slant": ("upright", "italic"),
    "category": CATEGORIES,
    "ink": tuple(COLOURS),
    "ground": tuple(COLOURS),
}


def attributes(captions: list[str]) -> Tensor:
    """(N, 6) int64: for each of ANSWERS the class of what the caption says, 0 for nothing."""
    said = [asdict(asked(caption)) for caption in captions]
    return torch.tensor([[_answer(answers, row[name]) for name, answers in ANSWERS.items()] for row in said])


def _answer(answers: tuple[str, ...], word: str | None) -> int:
    return 1 + answers.index(word) if word else 0


class TextEncoderTraining(pl.LightningModule):
    """Train a `CLIPTextModel` so that the mean of its token embeddings says linearly what the caption says.

    A cross-attention that has not learnt to look anywhere in particular sees that mean.
    Writes `<pipeline>/text_encoder` and `<pipeline>/tokenizer`.

    Args:
        pipeline: directory of the pipeline in the making.
        text_encoder: arguments of `CLIPTextConfig`; `max_position_embeddings` is the length of a prompt in tokens.
        optimizer: called with the parameters.
        steps, warmup: length of the cosine schedule and of its linear rise, in steps.
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
        self.heads = nn.ModuleList(nn.Linear(width, 1 + len(answers)) for answers in ANSWERS.values())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _answers(self, captions: list[str]) -> list[Tensor]:
        tokens = self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        embedded = self.text_encoder(tokens.input_ids.to(self.device))[0]  # (N, L, D)
        return [head(embedded.mean(1)) for head in self.heads]

    def training_step(self, captions: list[str], _) -> Tensor:
        truth = attributes(captions).to(self.device).unbind(1)
        loss = sum(F.cross_entropy(a, t) for a, t in zip(self._answers(captions), truth, strict=True))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(captions))
        return loss

    def validation_step(self, captions: list[str], _) -> None:
        truth = attributes(captions).to(self.device)
        answers = torch.stack([answer.argmax(-1) for answer in self._answers(captions)], dim=1)
        right = (answers == truth).float().mean()
        self.log("validation/understood", right, prog_bar=True, batch_size=len(captions))

    def on_validation_epoch_end(self) -> None:
        if self.trainer.is_global_zero and not self.trainer.sanity_checking:
            self.text_encoder.save_pretrained(self.pipeline / "text_encoder")
            self.tokenizer.save_pretrained(self.pipeline / "tokenizer")
