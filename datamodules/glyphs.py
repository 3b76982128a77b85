"""Captioned pictures of glyphs, drawn as they are asked for."""

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

from diffgan.glyphs import recipe
from diffgan.storage.digests import digest
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.autoencoders import Encoder


class CaptionedImages(NamedTuple):
    """image: (N, 3, 64, 64) float32 in [-1, 1]; caption: N str; label: (N, 2) int64, character and category (or -1)."""

    image: Tensor
    caption: list[str]
    label: Tensor


class GlyphDataset(Dataset):
    """Picture i of a split is a function of (split, seed, i): nothing is stored, every index is another picture."""

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


def _whole(batch: CaptionedImages) -> CaptionedImages:
    return batch


class GlyphImages(pl.LightningDataModule):
    """Glyph pictures for the stages that learn from images (autoencoder, denoiser, reader, LatentVGG).

    Args:
        batch_size: pictures a batch and process.
        train_images: pictures of an epoch; each appears once.
        validation_images: pictures of the validation families.
        seed: another seed draws other pictures.
        workers: processes that draw pictures ahead of the training.
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

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", drop_last=False)

    def _loader(self, split: str, drop_last: bool) -> DataLoader:
        return DataLoader(
            GlyphDataset(split, self.images[split], self.seed),
            batch_size=self.batch_size,
            drop_last=drop_last,
            collate_fn=_whole,
            num_workers=self.workers,
        )


class LatentCaptions(NamedTuple):
    """latent: (N, C, H, W) float32 of the diffusion model; caption: N str; label as in `CaptionedImages`."""

    latent: Tensor
    caption: list[str]
    label: Tensor


class LatentDataset(Dataset):
    """Latents of the pictures of a `GlyphDataset`, encoded once."""

    def __init__(self, latents: Tensor, pictures: GlyphDataset):
        self.latents, self.pictures = latents, pictures

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, indices: Sequence[int]) -> LatentCaptions:
        glyphs = recipe.describe(self.pictures.split, self.pictures.seed, indices)
        return LatentCaptions(
            latent=self.latents[torch.as_tensor(indices)].float(),
            caption=[glyph.caption for glyph in glyphs],
            label=recipe.labels(self.pictures.split, glyphs),
        )


class GlyphLatents(pl.LightningDataModule):
    """Latents of glyph pictures under an autoencoder, encoded once and kept in memory as float16.

    Args:
        vae: directory of the `AutoencoderKL`; none for pixels.
        cache: directory where the encoded latents are kept between runs.
        batch_size: latents a batch and process.
        train_images, validation_images: pictures encoded of each split.
        seed: another seed draws other pictures.
    """

    def __init__(
        self,
        vae: Path | None,
        cache: Path,
        batch_size: int = 32,
        train_images: int = 60_000,
        validation_images: int = 1024,
        seed: int = 0,
    ):
        super().__init__()
        self.vae, self.cache, self.batch_size, self.seed = vae, cache, batch_size, seed
        self.images = {"train": train_images, "validation": validation_images}

    def prepare_data(self) -> None:
        for split in self.images:
            if not self._file(split).is_file():
                self._encode(split)

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", shuffle=False)

    def _file(self, split: str) -> Path:
        weights = digest(self.vae) if self.vae else "pixels"
        key = hashlib.blake2b(f"{weights} {split} {self.seed} {self.images[split]}".encode(), digest_size=6)
        return self.cache / f"latents-{split}-{key.hexdigest()}.safetensors"

    def _encode(self, split: str) -> None:
        encoder, pictures = Encoder(self.vae), GlyphDataset(split, self.images[split], self.seed)
        loader = DataLoader(pictures, batch_size=64, collate_fn=_whole)
        latents = [
            encoder(batch.image).half()
            for batch in tqdm(loader, desc=f"encoding {split} pictures", unit_scale=64, unit="image")
        ]
        write_tensors(self._file(split), {"latent": torch.cat(latents)})

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        latents = load_file(self._file(split))["latent"]
        dataset = LatentDataset(latents, GlyphDataset(split, len(latents), self.seed))
        generator = torch.Generator().manual_seed(self.seed)
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, drop_last=shuffle, collate_fn=_whole, generator=generator
        )


class CaptionDataset(Dataset):
    """The captions of a `GlyphDataset`, without the pictures."""

    def __init__(self, pictures: GlyphDataset):
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitems__(self, indices: Sequence[int]) -> list[str]:
        return [glyph.caption for glyph in recipe.describe(self.pictures.split, self.pictures.seed, indices)]


class GlyphCaptions(GlyphImages):
    """The captions of `GlyphImages` alone."""

    def _loader(self, split: str, drop_last: bool) -> DataLoader:
        captions = CaptionDataset(GlyphDataset(split, self.images[split], self.seed))
        return DataLoader(captions, self.batch_size, drop_last=drop_last, collate_fn=_whole, num_workers=self.workers)
