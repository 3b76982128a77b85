"""Two-alternative forced choice (2AFC) on latents: the BAPPS data set, and synthetic triplets of glyphs."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.glyphs import GlyphDataset
from datamodules.loading import check_loading, trains_on_gpu, unchanged
from diffgan.errors import UserError, first_line
from diffgan.glyphs.distortions import FAMILIES, distort
from diffgan.glyphs.typefaces import load_for_workers
from diffgan.images import from_uint8, read_rgb, rgb_tensor
from diffgan.numbers import require
from diffgan.perceptual.two_afc import TwoAFCBatch
from diffgan.storage.outputs import require_name
from diffgan.teachers.autoencoders import Encoder


class _EncodedTwoAFC(pl.LightningDataModule):
    """2AFC on images, encoded on the training device: the common base of both data modules."""

    def __init__(self, vae: str | None, batch_size: int, workers: int):
        super().__init__()
        check_loading(batch_size, 0, workers)
        self.vae, self.batch_size, self.workers = vae, batch_size, workers
        self._encoder: Encoder | None = None

    def setup(self, stage: str) -> None:
        self._encoder = self._encoder or Encoder(self.vae)

    def on_after_batch_transfer(self, batch: TwoAFCBatch, dataloader_idx: int) -> TwoAFCBatch:
        encoder = self._encoder.to(batch.reference.device)
        images = torch.cat([batch.reference, batch.first, batch.second])
        reference, first, second = encoder(images).chunk(3)
        return batch._replace(reference=reference, first=first, second=second)

    def _loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            num_workers=self.workers,
            collate_fn=unchanged,
            drop_last=shuffle,
            pin_memory=trains_on_gpu(self.trainer),
        )


# ---- synthetic triplets of glyphs ----


class SyntheticGlyphTwoAFCDataset(Dataset):
    """Triplet i of a split is a function of (split, seed, i).

    One family of distortions is applied to a glyph twice, with two strengths; the preference is for the weaker one.

    Args:
        split: split of the typefaces.
        length: number of triplets.
        seed: another seed draws other glyphs and distortions.
    """

    def __init__(self, split: str, length: int, seed: int):
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> TwoAFCBatch:
        reference = GlyphDataset(self.split, self.length, self.seed).__getitems__(indices).image
        families = [list(FAMILIES)[index % len(FAMILIES)] for index in indices]
        triplets = [self._alternatives(*sample) for sample in zip(indices, reference, families, strict=True)]
        first, second, preference = (torch.stack(column) for column in zip(*triplets, strict=True))
        return TwoAFCBatch(reference, first, second, preference, families)

    def _alternatives(self, index: int, image: Tensor, family: str) -> tuple[Tensor, Tensor, Tensor]:
        """Two distortions of an image (3, H, W), and 1.0 if the second is the weaker one, else 0.0."""
        generator = torch.Generator().manual_seed(self.seed * 2**32 + index)
        strengths = torch.rand(2, 1, generator=generator)
        first, second = (distort(image[None], family, strength, generator)[0] for strength in strengths)
        return first, second, (strengths[0] > strengths[1])[0].float()


class SyntheticGlyphTwoAFC(_EncodedTwoAFC):
    """Synthetic 2AFC on distorted glyphs. The preference follows from the strengths; it is no human answer.

    Training, validation and test use typefaces of different families.

    Args:
        vae: autoencoder of the latents (a directory, or "owner/model/vae" on the hub); none for pixels.
        batch_size: triplets per batch and process.
        train: number of training triplets.
        validation: number of validation triplets.
        test: number of test triplets.
        seed: another seed draws other glyphs and distortions.
        workers: processes that draw triplets ahead of the training.
    """

    def __init__(
        self,
        vae: str | None,
        batch_size: int = 48,
        train: int = 24_000,
        validation: int = 960,
        test: int = 1920,
        seed: int = 7,
        workers: int = 0,
    ):
        super().__init__(vae, batch_size, workers)
        check_loading(batch_size, seed, workers, train=train, validation=validation, test=test)
        self.lengths, self.seed = {"train": train, "validation": validation, "reference": test}, seed

    def train_dataloader(self) -> DataLoader:
        return self._split("train")

    def val_dataloader(self) -> DataLoader:
        return self._split("validation")

    def test_dataloader(self) -> DataLoader:
        return self._split("reference")

    def _split(self, split: str) -> DataLoader:
        load_for_workers(split)
        dataset = SyntheticGlyphTwoAFCDataset(split, self.lengths[split], self.seed)
        return self._loader(dataset, shuffle=split == "train")


# ---- BAPPS ----


MAX_PREFERENCE_BYTES = 4096
IMAGE_FOLDERS = ("ref", "p0", "p1")


class BAPPSDataset(Dataset):
    """Triplets of family folders, each with PNGs in `ref`, `p0` and `p1` and .npy files of the same names in `judge`.

    Args:
        folders: the family folders; a folder's name is the family.
        resolution: side in pixels to which images are resized; None keeps their size.

    Raises:
        UserError: no PNG in any folder `ref`; later, an image or a preference that cannot be read.
    """

    def __init__(self, folders: Sequence[Path], resolution: int | None):
        self.items = [(folder, image.stem) for folder in folders for image in sorted((folder / "ref").glob("*.png"))]
        self.resolution = resolution
        if not self.items:
            raise UserError(f"{', '.join(map(str, folders))}: no PNG in a subfolder ref; expected ref, p0, p1, judge")

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> TwoAFCBatch:
        items = [self.items[index] for index in indices]
        images = [self._images(items, subfolder) for subfolder in IMAGE_FOLDERS]
        preference = torch.tensor([_read_preference(folder / "judge" / f"{name}.npy") for folder, name in items])
        return TwoAFCBatch(*images, preference, [folder.name for folder, _ in items])

    def _images(self, items: list[tuple[Path, str]], subfolder: str) -> Tensor:
        return torch.stack([self._image(folder / subfolder / f"{name}.png") for folder, name in items])

    def _image(self, path: Path) -> Tensor:
        """(3, H, W) in [-1, 1]."""
        image = read_rgb(path)
        if self.resolution:
            image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        return from_uint8(rgb_tensor(image))


def _read_preference(path: Path) -> float:
    """The share in a file of NumPy, in [0, 1]; raises UserError if it holds anything else."""
    try:
        if path.stat().st_size > MAX_PREFERENCE_BYTES:
            raise ValueError(f"more than {MAX_PREFERENCE_BYTES} bytes")
        preference = float(np.load(path, allow_pickle=False).item())
        if not 0 <= preference <= 1:
            raise ValueError(f"{preference} is no share")
        return preference
    except Exception as error:  # NumPy raises many kinds for other files
        raise UserError(f"{path}: cannot be read as one number between 0 and 1 ({first_line(error)})") from error


class BAPPS(_EncodedTwoAFC):
    """The Berkeley-Adobe perceptual patch similarity data set in its published layout, encoded.

    `<folder>/train/<family>/{ref,p0,p1,judge}` trains, `<folder>/val/<family>/...` validates and tests.

    Args:
        folder: the data set's folder `2afc`.
        vae: autoencoder of the latents (a directory, or "owner/model/vae" on the hub); none for pixels.
        families: names of the families to use; by default all of the folder.
        resolution: side in pixels to which patches are resized before encoding; by default they are not resized.
        batch_size: triplets per batch and process.
        workers: processes that read images.
    """

    def __init__(
        self,
        folder: Path,
        vae: str | None,
        families: list[str] | None = None,
        resolution: int | None = None,
        batch_size: int = 50,
        workers: int = 4,
    ):
        super().__init__(vae, batch_size, workers)
        require_name("folder", folder)
        if resolution is not None:
            require("resolution", resolution, least=1)
        self.folder, self.families, self.resolution = folder, families, resolution

    def train_dataloader(self) -> DataLoader:
        return self._loader(self._dataset("train"), shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._dataset("val"), shuffle=False)

    test_dataloader = val_dataloader

    def _dataset(self, split: str) -> BAPPSDataset:
        root = self.folder / split
        if not root.is_dir():
            raise UserError(f"{root}: no such folder; BAPPS has {self.folder}/train and {self.folder}/val")
        folders = sorted(path for path in root.iterdir() if self.families is None or path.name in self.families)
        missing = set(self.families or []) - {path.name for path in folders}
        if missing:
            raise UserError(f"{root}: has no family {sorted(missing)[0]!r}")
        return BAPPSDataset(folders, self.resolution)
