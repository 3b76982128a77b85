"""Two-alternative forced-choice judgements as latents: BAPPS folders, and the miniature's synthetic ones."""

from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.glyphs import GlyphDataset
from diffgan.errors import UserError
from diffgan.glyphs.distortions import FAMILIES, distort
from diffgan.images import from_uint8
from diffgan.perceptual.two_afc import Judgements
from diffgan.teachers.autoencoders import Encoder


def _whole(batch: Judgements) -> Judgements:
    return batch


class _EncodedJudgements(pl.LightningDataModule):
    """Judgements on images, encoded on the device that computes: what the two data sets share."""

    def __init__(self, vae: str | None, batch_size: int, workers: int):
        super().__init__()
        self.vae, self.batch_size, self.workers = vae, batch_size, workers
        self._encoder: Encoder | None = None

    def setup(self, stage: str) -> None:
        self._encoder = self._encoder or Encoder(self.vae)

    def on_after_batch_transfer(self, batch: Judgements, dataloader_idx: int) -> Judgements:
        encoder = self._encoder.to(batch.reference.device)
        images = torch.cat([batch.reference, batch.first, batch.second])
        reference, first, second = encoder(images).chunk(3)
        return batch._replace(reference=reference, first=first, second=second)

    def _loader(self, dataset: Dataset, shuffle: bool) -> DataLoader:
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, num_workers=self.workers, collate_fn=_whole, drop_last=shuffle
        )


# ---- synthetic judgements on glyphs ----


class SyntheticGlyphDataset(Dataset):
    """Judgement i of a split is a function of (split, seed, i).

    One family distorts a glyph twice, with two strengths; the synthetic judge finds the weaker one closer.
    """

    def __init__(self, split: str, length: int, seed: int):
        self.split, self.length, self.seed = split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> Judgements:
        reference = GlyphDataset(self.split, self.length, self.seed).__getitems__(indices).image
        families = [list(FAMILIES)[index % len(FAMILIES)] for index in indices]
        judged = [self._judged(*item) for item in zip(indices, reference, families, strict=True)]
        first, second, judge = (torch.stack(column) for column in zip(*judged, strict=True))
        return Judgements(reference, first, second, judge, families)

    def _judged(self, index: int, image: Tensor, family: str) -> tuple[Tensor, Tensor, Tensor]:
        """Two distortions of an image (3, H, W) and the synthetic judge's answer."""
        generator = torch.Generator().manual_seed(self.seed * 2**32 + index)
        strengths = torch.rand(2, 1, generator=generator)
        first, second = (distort(image[None], family, strength, generator)[0] for strength in strengths)
        return first, second, (strengths[0] > strengths[1])[0].float()


class SyntheticGlyphJudgements(_EncodedJudgements):
    """Synthetic judgements on distorted glyphs: the answer follows from the strengths, no person was asked.

    Training, validation and test use typefaces of different families.

    Args:
        vae: autoencoder whose latents are compared; none for pixels.
        batch_size: judgements a batch and process.
        train, validation, test: judgements of each split.
        seed: another seed draws other pictures and distortions.
        workers: processes that draw pictures ahead.
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
        self.lengths, self.seed = {"train": train, "validation": validation, "reference": test}, seed

    def train_dataloader(self) -> DataLoader:
        return self._split("train")

    def val_dataloader(self) -> DataLoader:
        return self._split("validation")

    def test_dataloader(self) -> DataLoader:
        return self._split("reference")

    def _split(self, split: str) -> DataLoader:
        dataset = SyntheticGlyphDataset(split, self.lengths[split], self.seed)
        return self._loader(dataset, shuffle=split == "train")


# ---- BAPPS ----


class BAPPSDataset(Dataset):
    """A folder of a family: `ref`, `p0`, `p1` with PNGs and `judge` with .npy files of the same names."""

    def __init__(self, folders: Sequence[Path], resolution: int | None):
        self.items = [(folder, image.stem) for folder in folders for image in sorted((folder / "ref").glob("*.png"))]
        self.resolution = resolution
        if not self.items:
            raise UserError(f"{', '.join(map(str, folders))}: no PNG in a subfolder ref; expected ref, p0, p1, judge")

    def __len__(self) -> int:
        return len(self.items)

    def __getitems__(self, indices: Sequence[int]) -> Judgements:
        items = [self.items[index] for index in indices]
        triple = [torch.stack([self._image(f / part / f"{name}.png") for f, name in items]) for part in _PARTS]
        judge = torch.tensor([_judgement(folder / "judge" / f"{name}.npy") for folder, name in items])
        return Judgements(*triple, judge, [folder.name for folder, _ in items])

    def _image(self, path: Path) -> Tensor:
        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise UserError(f"{path}: cannot be read as an image ({error})") from error
        if self.resolution:
            image = image.resize((self.resolution, self.resolution), Image.Resampling.BICUBIC)
        return from_uint8(torch.from_numpy(np.array(image)).permute(2, 0, 1))


_PARTS = ("ref", "p0", "p1")


def _judgement(path: Path) -> float:
    try:
        return float(np.load(path, allow_pickle=False).item())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as one number ({error})") from error


class BAPPS(_EncodedJudgements):
    """The Berkeley-Adobe perceptual patch similarity data set in its published layout, encoded.

    `<folder>/train/<family>/{ref,p0,p1,judge}` trains, `<folder>/val/<family>/...` validates and tests.

    Args:
        folder: the data set's folder `2afc`.
        vae: autoencoder whose latents are compared (a directory, or "owner/model/vae" on the hub); none for pixels.
        families: names of the families to use; by default all that are there.
        resolution: side in pixels to which patches are resized before they are encoded; by default as they are.
        batch_size: judgements a batch and process.
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
