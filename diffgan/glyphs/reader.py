"""The reader: a small network that classifies the character of a glyph image.

It evaluates generators, so it is trained on real glyphs alone, never on images of a teacher.
"""

import copy
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch.cli import OptimizerCallable
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diffgan.errors import UserError
from diffgan.glyphs.attributes import coverage
from diffgan.glyphs.typefaces import CHARACTERS
from diffgan.storage.embedded import embedded
from diffgan.storage.tensor_files import expected_tensors, write_tensors
from diffgan.storage.tensor_headers import read_tensors_header, tensors_fault
from diffgan.training.lr_schedules import warmup_cosine
from diffgan.training.results import writes_results

HEADER = {"format": "diffgan glyph reader 1", "characters": CHARACTERS}


def _stage(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class GlyphReader(nn.Module):
    """Classifier of characters. Its input is the coverage of the image, which does not depend on colours."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            _stage(1, 24, 5, 2),  # (N, 24, 32, 32)
            _stage(24, 48, 3, 2),  # (N, 48, 16, 16)
            _stage(48, 96, 3, 1),
            _stage(96, 128, 3, 2),  # (N, 128, 8, 8)
            _stage(128, 128, 3, 1),
            _stage(128, 128, 3, 2),  # (N, 128, 4, 4)
        )
        self.classify = nn.Sequential(nn.Dropout(0.2), nn.Linear(128 * 16, len(CHARACTERS)))

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, 64, 64) in [-1, 1] -> logits (N, 62) over CHARACTERS."""
        maps = coverage(images).to(memory_format=torch.channels_last)
        return self.classify(self.features(maps).flatten(1))

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """The most likely character of each image: (N,) int64 indices into CHARACTERS."""
        return self(images).argmax(1)

    def save(self, path: Path) -> None:
        """Write the weights as float16, atomically."""
        write_tensors(path, copy.deepcopy(self).half().state_dict(), HEADER)


def load_reader(path: Path | None = None) -> GlyphReader:
    """Load a frozen reader in eval mode.

    Args:
        path: safetensors file; by default that of the package.

    Raises:
        UserError: the file is missing, damaged, or holds no weights of a reader.
    """
    source = embedded("reader.safetensors") if path is None else path
    reader = GlyphReader()
    try:
        header = read_tensors_header(source)
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read as a glyph reader: {error}") from error
    if header.metadata.get("format") != HEADER["format"]:
        raise UserError(f"{source}: holds no weights of a glyph reader")
    if fault := tensors_fault(header.tensors, expected_tensors(reader)):
        raise UserError(f"{source}: {fault}; restore the file")
    reader.load_state_dict(load_file(source))
    return reader.requires_grad_(False).eval()


class ReaderTraining(pl.LightningModule):
    """Train a `GlyphReader` on the images of `GlyphImages`; write its weights to `output`.

    Args:
        output: safetensors file to write.
        optimizer: called with the parameters.
        steps: length of the cosine schedule.
        warmup: length of its linear warm-up, in steps.
        noise: standard deviation of the noise added to training images, so that small artefacts do not decide.
    """

    def __init__(self, output: Path, optimizer: OptimizerCallable, steps: int, warmup: int = 50, noise: float = 0.05):
        super().__init__()
        self.reader = GlyphReader().to(memory_format=torch.channels_last)
        self.output, self.optimizer = output, optimizer
        self.steps, self.warmup, self.noise = steps, warmup, noise

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = LambdaLR(optimizer, warmup_cosine(self.warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, _) -> Tensor:
        logits = self.reader(batch.image + self.noise * torch.randn_like(batch.image))
        loss = F.cross_entropy(logits, batch.label[:, 0])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, _) -> None:
        accuracy = (self.reader(batch.image).argmax(1) == batch.label[:, 0]).float().mean()
        self.log("validation/accuracy", accuracy, prog_bar=True, batch_size=len(batch.image))

    def on_fit_end(self) -> None:
        if writes_results(self.trainer):
            self.reader.save(self.output)
