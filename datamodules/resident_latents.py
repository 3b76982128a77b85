"""Latents of glyph images that stay on the training device, where a batch costs the processor an index.

Images are described by worker processes, painted and encoded on the device in large batches, and never leave it.
Captions become rows of a list of distinct texts, so that a model can encode each text once.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.loading import unchanged
from diffgan.glyphs import recipe
from diffgan.glyphs.typefaces import load_for_workers
from diffgan.teachers.autoencoders import Encoder

ENCODED_BATCH = 1024  # images painted and encoded together; the rounding of the latents depends on it


class IndexedLatents(NamedTuple):
    """A batch of latents, or all of a split, on the training device.

    latent: (N, C, H, W), of the diffusion model; float32 in a batch, float16 in a split.
    caption: (N,) int64, rows of the captions.
    label: (N, 2) int64, character and category (-1 if unknown).
    """

    latent: Tensor
    caption: Tensor
    label: Tensor


class _Descriptions(Dataset):
    """The glyphs of a split; index i is a function of (split, seed, i)."""

    def __init__(self, split: str, length: int, seed: int):
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> list[recipe.Glyph]:
        return recipe.describe(self.split, self.seed, indices)


class LatentEncoding:
    """Draws and encodes splits of glyph images on a device; collects their distinct captions.

    Args:
        vae: directory of the `AutoencoderKL`; none for pixels.
        device: where images are painted and encoded.
        workers: processes that draw the descriptions of the images.

    Attributes:
        captions: the distinct captions of all splits so far; the first one is "".
    """

    def __init__(self, vae: Path | None, device: torch.device, workers: int):
        self.encoder, self.device, self.workers = Encoder(vae).to(device), device, workers
        self._rows = {"": 0}

    @property
    def captions(self) -> list[str]:
        return list(self._rows)

    def encode(self, split: str, length: int, seed: int) -> IndexedLatents:
        """The first `length` images of (split, seed), as in `GlyphDataset`: latents in float16, on the device."""
        load_for_workers(split)
        glyphs = DataLoader(
            _Descriptions(split, length, seed), ENCODED_BATCH, num_workers=self.workers, collate_fn=unchanged
        )
        batches = tqdm(glyphs, desc=f"encoding {split} images", unit_scale=ENCODED_BATCH, unit="image")
        encoded: IndexedLatents | None = None  # filled batch by batch: joining parts would take twice the memory
        for index, batch in enumerate(batches):
            part = self._encode(split, batch)
            if encoded is None:
                encoded = IndexedLatents(*(column.new_empty(length, *column.shape[1:]) for column in part))
            rows = slice(index * ENCODED_BATCH, index * ENCODED_BATCH + len(batch))
            for column, values in zip(encoded, part, strict=True):
                column[rows] = values
        return encoded

    def _encode(self, split: str, glyphs: list[recipe.Glyph]) -> IndexedLatents:
        latent = self.encoder(recipe.paint(split, glyphs, self.device)).half()
        rows = [self._rows.setdefault(glyph.caption, len(self._rows)) for glyph in glyphs]
        return IndexedLatents(latent, torch.tensor(rows).to(self.device), recipe.labels(split, glyphs).to(self.device))


class ResidentBatches:
    """Batches of a split that is on the device; with an order, shuffled anew in every epoch.

    Args:
        data: the split.
        batch_size: latents per batch and process.
        order: none to read in order, all of it. Otherwise the permutation (N,) of the epoch that begins; whole batches
            are taken from it, by the processes in turn.
        rank, world_size: this process and their number.
    """

    def __init__(
        self,
        data: IndexedLatents,
        batch_size: int,
        order: Callable[[], Tensor] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.data, self.batch_size, self.order = data, batch_size, order
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        count = len(self.data.latent)
        if self.order is None:
            return -(-count // self.batch_size)
        return count // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[IndexedLatents]:
        if self.order is None:
            rows = torch.arange(len(self.data.latent))
            yield from map(self._batch, rows.to(self.data.latent.device).split(self.batch_size))
            return
        used = len(self) * self.world_size * self.batch_size
        batches = self.order()[:used].view(-1, self.world_size, self.batch_size)[:, self.rank]
        yield from map(self._batch, batches.to(self.data.latent.device).unbind())

    def _batch(self, rows: Tensor) -> IndexedLatents:
        latent, caption, label = (column[rows] for column in self.data)
        return IndexedLatents(latent.float(), caption, label)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation (count,) of an epoch: a function of its arguments, the same on every device."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator)
