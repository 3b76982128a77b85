"""Labelled images of a folder as latents: ImageNet, or any set with one subfolder a class."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from diffgan.errors import UserError
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.autoencoders import Encoder

SPLITS = {"train": "train", "validation": "val"}


class LabelledLatents(NamedTuple):
    """latent: (N, C, H, W), or images (N, 3, H, W) before they are encoded; label: (N, 1) int64."""

    latent: Tensor
    label: Tensor


class CachedLatents(Dataset):
    """Latents in shards on disk, read where they lie."""

    def __init__(self, files: Sequence[Path]):
        self._shards = [safe_open(file, framework="pt") for file in files]
        self._labels = [shard.get_tensor("label") for shard in self._shards]
        self._places = [(s, row) for s, labels in enumerate(self._labels) for row in range(len(labels))]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> LabelledLatents:
        shard, row = self._places[index]
        latent = self._shards[shard].get_slice("latent")[row : row + 1][0].float()
        return LabelledLatents(latent, self._labels[shard][row])


class ImageFolderLatents(pl.LightningDataModule):
    """Images of `<folder>/train/<class>/` and `<folder>/val/<class>/`, encoded for the stage `latent_vgg`.

    Training images are cropped at random and flipped, as VGG and ResNet recipes do; then they are encoded on the device
    that computes, or, with a `cache`, once: `crops` random crops of every image are kept as float16 on disk.

    Args:
        folder: has the subfolders train and val.
        vae: autoencoder (a directory, or "owner/model/vae" on the hub); none for pixels.
        size: side of the crops in pixels.
        batch_size: images a batch and process.
        workers: processes that read images.
        cache: folder of encoded latents; by default every crop is encoded when it is used.
        crops: random crops of every training image in the cache.
        shard_size: latents a file of the cache.
    """

    def __init__(
        self,
        folder: Path,
        vae: str | None,
        size: int = 256,
        batch_size: int = 64,
        workers: int = 8,
        cache: Path | None = None,
        crops: int = 4,
        shard_size: int = 10_000,
    ):
        super().__init__()
        self.folder, self.vae, self.size = folder, vae, size
        self.batch_size, self.workers = batch_size, workers
        self.cache, self.crops, self.shard_size = cache, crops, shard_size
        self._encoder: Encoder | None = None

    def setup(self, stage: str) -> None:
        self._encoder = self._encoder or Encoder(self.vae)
        self.data = {split: self._images(split) for split in SPLITS}
        if self.cache is None:
            return
        rows = {split: self._cached_rows(split) for split in SPLITS}
        files = {split: self._files(split, len(rows[split])) for split in SPLITS}
        for split in SPLITS:
            self._fill_cache(self.data[split], rows[split], files[split])
        self.trainer.strategy.barrier()
        self.data = {split: CachedLatents(files[split]) for split in SPLITS}

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("validation", shuffle=False)

    def on_after_batch_transfer(self, batch: LabelledLatents, dataloader_idx: int) -> LabelledLatents:
        if self.cache is not None:
            return batch
        return batch._replace(latent=self._encoder.to(batch.latent.device)(batch.latent))

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        return DataLoader(
            self.data[split], self.batch_size, shuffle=shuffle, num_workers=self.workers, drop_last=shuffle
        )

    def _images(self, split: str) -> Dataset:
        root = self.folder / SPLITS[split]
        try:
            return LabelledImages(root, self._transform(split))
        except FileNotFoundError as error:
            raise UserError(f"{root}: no subfolders of images, one a class ({error})") from error

    def _transform(self, split: str) -> v2.Transform:
        if split == "train":
            cut = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
        else:
            cut = [v2.Resize(round(self.size * 8 / 7), antialias=True), v2.CenterCrop(self.size)]
        centred = v2.Normalize([0.5] * 3, [0.5] * 3)
        return v2.Compose([v2.ToImage(), *cut, v2.ToDtype(torch.float32, scale=True), centred])

    # ---- the cache ----

    def _cached_rows(self, split: str) -> list[int]:
        """The image of every row of a split's cache: training images once for each of their crops."""
        return list(range(len(self.data[split]))) * (self.crops if split == "train" else 1)

    def _files(self, split: str, count: int) -> list[Path]:
        """The shards of a split of `count` rows, named by what their content depends on."""
        weights = hashlib.blake2b(digest_size=8)
        for tensor in self._encoder.state_dict().values():
            weights.update(tensor.detach().cpu().float().numpy().tobytes())
        settings = f"{weights.hexdigest()} {self.folder.resolve()} {self.size} {count} {self.shard_size}"
        key = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
        shards = -(-count // self.shard_size)
        return [self.cache / f"{split}-{key}-{i:05}-of-{shards:05}.safetensors" for i in range(shards)]

    def _fill_cache(self, images: Dataset, rows: list[int], files: list[Path]) -> None:
        """Encode the shards that are missing, every process its own; a broken run goes on with the next shard."""
        device = self.trainer.strategy.root_device
        encoder = self._encoder.to(device)
        for i, file in enumerate(files):
            if i % self.trainer.world_size != self.trainer.global_rank or file.is_file():
                continue
            torch.manual_seed(i)  # of the crops
            part = Subset(images, rows[i * self.shard_size : (i + 1) * self.shard_size])
            loader = DataLoader(part, self.batch_size, num_workers=self.workers)
            batches = [
                LabelledLatents(encoder(batch.latent.to(device)).half().cpu(), batch.label)
                for batch in tqdm(loader, desc=f"encoding {file.name}")
            ]
            latent, label = (torch.cat(column) for column in zip(*batches, strict=True))
            write_tensors(file, {"latent": latent, "label": label})


class LabelledImages(Dataset):
    """A folder with one subfolder a class."""

    def __init__(self, root: Path, transform: v2.Transform):
        self.images = ImageFolder(str(root), transform)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledLatents:
        try:
            image, label = self.images[index]
        except OSError as error:
            raise UserError(f"{self.images.samples[index][0]}: cannot be read as an image ({error})") from error
        return LabelledLatents(image, torch.tensor([label]))
