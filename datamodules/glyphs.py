"""Captioned images of glyphs, drawn on demand, and their latents."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from datamodules.loading import check_loading, trains_on_gpu, unchanged
from datamodules.resident_latents import IndexedLatents, LatentEncoding, ResidentBatches, epoch_order
from diffgan.glyphs import recipe
from diffgan.glyphs.typefaces import load_for_workers
from diffgan.storage.digests import digest
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.autoencoders import Encoder

ENCODED_BATCH = 64  # images encoded together; the rounding of the latents depends on it


class CaptionedImages(NamedTuple):
    """A batch of images.

    image: (N, 3, 64, 64) float32 in [-1, 1].
    caption: N texts.
    label: (N, 2) int64, character and category (-1 if unknown).
    """

    image: Tensor
    caption: list[str]
    label: Tensor


class GlyphDataset(Dataset):
    """Image i of a split is a function of (split, seed, i). Nothing is stored, and every index is another image.

    Args:
        split: "train", "validation" or "reference".
        length: number of images.
        seed: another seed draws other images.
    """

    def __init__(self, split: str, length: int, seed: int):
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> CaptionedImages:
        glyphs = recipe.describe(self.split, self.seed, indices)
        return CaptionedImages(
            image=recipe.paint(self.split, glyphs),
            caption=[glyph.caption for glyph in glyphs],
            label=recipe.labels(self.split, glyphs),
        )


class GlyphImages(pl.LightningDataModule):
    """Glyph images for the stages trained on images (autoencoder, reader).

    Args:
        batch_size: images per batch and process.
        train_images: images of an epoch; each appears once.
        validation_images: images of the validation families.
        seed: another seed draws other images.
        workers: processes that draw images ahead of the training.
    """

    def __init__(
        self,
        batch_size: int = 16,
        train_images: int = 1_000_000,
        validation_images: int = 512,
        seed: int = 0,
        workers: int = 0,
    ):
        super().__init__()
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.images = {"train": train_images, "validation": validation_images}
        check_loading(self.batch_size, self.seed, self.workers, **self.images)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", drop_last=False)

    def _loader(self, split: str, drop_last: bool) -> DataLoader:
        load_for_workers(split)
        return DataLoader(
            GlyphDataset(split, self.images[split], self.seed),
            batch_size=self.batch_size,
            drop_last=drop_last,
            collate_fn=unchanged,
            num_workers=self.workers,
            pin_memory=trains_on_gpu(self.trainer),
        )


class LatentCaptions(NamedTuple):
    """A batch of latents.

    latent: (N, C, H, W) float32, of the diffusion model.
    caption: N texts.
    label: as in `CaptionedImages`.
    """

    latent: Tensor
    caption: list[str]
    label: Tensor


class LatentDataset(Dataset):
    """Encoded images of a `GlyphDataset`.

    Args:
        latents: (length, C, H, W) float16.
        images: the images that were encoded.
    """

    def __init__(self, latents: Tensor, images: GlyphDataset):
        self.latents, self.images = latents, images

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: Sequence[int]) -> LatentCaptions:
        glyphs = recipe.describe(self.images.split, self.images.seed, indices)
        return LatentCaptions(
            latent=self.latents[torch.as_tensor(indices)].float(),
            caption=[glyph.caption for glyph in glyphs],
            label=recipe.labels(self.images.split, glyphs),
        )


class GlyphLatents(pl.LightningDataModule):
    """Latents of glyph images, encoded once and kept in memory as float16.

    Args:
        vae: directory of the `AutoencoderKL`; none for pixels.
        cache: directory where the latents are kept between runs; not used if `resident`.
        batch_size: latents per batch and process.
        train_images: number of training images.
        validation_images: number of validation images.
        seed: another seed draws other images.
        resident: encode and keep everything on the training device, for a GPU: nothing is written, and batches are
            `IndexedLatents`, whose captions are rows of `captions`.
        workers: processes that draw the images to be encoded if `resident`.

    Attributes:
        captions: the distinct captions of resident latents, the first of them ""; none if they are not resident.
    """

    def __init__(
        self,
        vae: Path | None,
        cache: Path,
        batch_size: int = 32,
        train_images: int = 60_000,
        validation_images: int = 1024,
        seed: int = 0,
        resident: bool = False,
        workers: int = 0,
    ):
        super().__init__()
        self.vae, self.cache, self.batch_size, self.seed = vae, cache, batch_size, seed
        self.images = {"train": train_images, "validation": validation_images}
        self.resident, self.workers = resident, workers
        check_loading(self.batch_size, self.seed, self.workers, **self.images)
        self.captions: list[str] | None = None
        self._on_device: dict[str, IndexedLatents] = {}

    def prepare_data(self) -> None:
        for split in self.images:
            if not self.resident and not self._file(split).is_file():
                self._encode(split)

    def setup(self, stage: str) -> None:
        if not self.resident or self._on_device:
            return
        encoding = LatentEncoding(self.vae, self.trainer.strategy.root_device, self.workers)
        for split, count in self.images.items():
            self._on_device[split] = encoding.encode(split, count, self.seed)
        self.captions = encoding.captions

    def train_dataloader(self) -> DataLoader | ResidentBatches:
        if not self.resident:
            return self._loader("train", shuffle=True)
        trainer, data = self.trainer, self._on_device["train"]

        def order() -> Tensor:
            return epoch_order(len(data.latent), self.seed, trainer.current_epoch)

        return ResidentBatches(data, self.batch_size, order, trainer.global_rank, trainer.world_size)

    def val_dataloader(self) -> DataLoader | ResidentBatches:
        if not self.resident:
            return self._loader("validation", shuffle=False)
        return ResidentBatches(self._on_device["validation"], self.batch_size)

    def _file(self, split: str) -> Path:
        weights = digest(self.vae) if self.vae else "pixels"
        key = hashlib.blake2b(f"{weights} {split} {self.seed} {self.images[split]}".encode(), digest_size=6)
        return self.cache / f"latents-{split}-{key.hexdigest()}.safetensors"

    def _encode(self, split: str) -> None:
        encoder, images = Encoder(self.vae), GlyphDataset(split, self.images[split], self.seed)
        loader = DataLoader(images, batch_size=ENCODED_BATCH, collate_fn=unchanged)
        batches = tqdm(loader, desc=f"encoding {split} images", unit_scale=ENCODED_BATCH, unit="image")
        latents = [encoder(batch.image).half() for batch in batches]
        write_tensors(self._file(split), {"latent": torch.cat(latents)})

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        latents = load_file(self._file(split))["latent"]
        dataset = LatentDataset(latents, GlyphDataset(split, len(latents), self.seed))
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, drop_last=shuffle, collate_fn=unchanged, generator=generator
        )


class CaptionDataset(Dataset):
    """The captions of a `GlyphDataset`, without the images."""

    def __init__(self, images: GlyphDataset):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: Sequence[int]) -> list[str]:
        return [glyph.caption for glyph in recipe.describe(self.images.split, self.images.seed, indices)]


class GlyphCaptions(GlyphImages):
    """The captions of `GlyphImages`, for the text encoder; same arguments."""

    def _loader(self, split: str, drop_last: bool) -> DataLoader:
        load_for_workers(split)
        captions = CaptionDataset(GlyphDataset(split, self.images[split], self.seed))
        return DataLoader(
            captions, self.batch_size, drop_last=drop_last, collate_fn=unchanged, num_workers=self.workers
        )
