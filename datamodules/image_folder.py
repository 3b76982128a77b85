"""Latents of labelled images in a folder: ImageNet, or any data set with one subfolder per class."""

import hashlib
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from datamodules.loading import check_loading, trains_on_gpu
from diffgan.errors import UserError
from diffgan.images import open_image
from diffgan.storage.outputs import require_name
from diffgan.storage.tensor_files import write_tensors
from diffgan.teachers.autoencoders import Encoder

SPLITS = {"train": "train", "validation": "val"}


class LabelledLatents(NamedTuple):
    """A batch: latents with class labels.

    latent: (N, C, H, W); before encoding, images (N, 3, H, W) in [-1, 1].
    label: (N, 1) int64, index of the class.
    """

    latent: Tensor
    label: Tensor


class CachedLatents(Dataset):
    """Latents and labels in memory-mapped safetensors files."""

    def __init__(self, files: Sequence[Path]):
        self._shards = [safe_open(file, framework="pt") for file in files]
        self._labels = [shard.get_tensor("label") for shard in self._shards]
        self._ends = list(accumulate(len(labels) for labels in self._labels))  # latents up to the end of every shard

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> LabelledLatents:
        shard = bisect_right(self._ends, index)
        row = index - self._ends[shard] + len(self._labels[shard])
        latent = self._shards[shard].get_slice("latent")[row : row + 1][0].float()
        return LabelledLatents(latent, self._labels[shard][row])


class ImageFolderLatents(pl.LightningDataModule):
    """Images of `<folder>/train/<class>/` and `<folder>/val/<class>/`, encoded for the stage `latent_vgg`.

    Training images are randomly cropped and flipped, as in the recipes of VGG and ResNet. Without a `cache` every crop
    is encoded when it is used, on the training device. With a `cache`, `crops` random crops of every training image
    are encoded once and stored as float16.

    Args:
        folder: contains the subfolders train and val.
        vae: autoencoder (a directory, or "owner/model/vae" on the hub); None for pixels.
        size: side of the crops in pixels.
        batch_size: images per batch and process.
        workers: processes that read images.
        cache: folder for encoded latents, or None.
        crops: random crops of every training image in the cache.
        shard_size: latents per file of the cache.

    Raises:
        UserError: in `setup`, `folder` does not have these subfolders, or the autoencoder cannot be loaded; during
            iteration, an image cannot be read.
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
        require_name("folder", folder)
        check_loading(batch_size, 0, workers, size=size, crops=crops, shard_size=shard_size)
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
        return batch._replace(latent=self._encode(batch.latent))

    def _encode(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> latents, float32, on their device; in bfloat16 if the training is."""
        encoder = self._encoder.to(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._rounds):
            return encoder(images).float()

    @property
    def _rounds(self) -> bool:
        """Whether latents are computed in bfloat16. In float16 some autoencoders overflow."""
        return self.trainer is not None and self.trainer.precision == "bf16-mixed"

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        settings = {"shuffle": shuffle, "drop_last": shuffle, "num_workers": self.workers}
        settings["pin_memory"] = trains_on_gpu(self.trainer)
        return DataLoader(self.data[split], self.batch_size, **settings)

    def _images(self, split: str) -> Dataset:
        root = self.folder / SPLITS[split]
        try:
            return LabelledImages(root, self._transform(split))
        except FileNotFoundError as error:
            raise UserError(f"{root}: no subfolders of images, one per class ({error})") from error

    def _transform(self, split: str) -> v2.Transform:
        if split == "train":
            crop = [v2.RandomResizedCrop(self.size, antialias=True), v2.RandomHorizontalFlip()]
        else:
            crop = [v2.Resize(round(self.size * 8 / 7), antialias=True), v2.CenterCrop(self.size)]
        normalize = v2.Normalize([0.5] * 3, [0.5] * 3)  # [0, 1] -> [-1, 1]
        return v2.Compose([v2.ToImage(), *crop, v2.ToDtype(torch.float32, scale=True), normalize])

    # ---- cache ----

    def _cached_rows(self, split: str) -> list[int]:
        """Index of the image of every row in a split's cache; a training image has one row per crop."""
        return list(range(len(self.data[split]))) * (self.crops if split == "train" else 1)

    def _files(self, split: str, count: int) -> list[Path]:
        """The cache files of a split of `count` rows; a digest of everything they depend on is part of their names."""
        weights = hashlib.blake2b(digest_size=8)
        for tensor in self._encoder.state_dict().values():
            weights.update(tensor.detach().cpu().float().numpy().tobytes())
        settings = f"{weights.hexdigest()} {self.folder.resolve()} {self.size} {count} {self.shard_size}"
        settings += " bf16" if self._rounds else ""
        key = hashlib.blake2b(settings.encode(), digest_size=6).hexdigest()
        shards = -(-count // self.shard_size)
        return [self.cache / f"{split}-{key}-{i:05}-of-{shards:05}.safetensors" for i in range(shards)]

    def _fill_cache(self, images: Dataset, rows: list[int], files: list[Path]) -> None:
        """Encode the missing shards, divided among processes. An interrupted run resumes at the next shard."""
        device = self.trainer.strategy.root_device
        for i, file in enumerate(files):
            if i % self.trainer.world_size != self.trainer.global_rank or file.is_file():
                continue
            torch.manual_seed(i)  # for the random crops
            subset = Subset(images, rows[i * self.shard_size : (i + 1) * self.shard_size])
            loader = DataLoader(subset, self.batch_size, num_workers=self.workers)
            batches = [
                LabelledLatents(self._encode(batch.latent.to(device)).half().cpu(), batch.label)
                for batch in tqdm(loader, desc=f"encoding {file.name}")
            ]
            latent, label = (torch.cat(column) for column in zip(*batches, strict=True))
            write_tensors(file, {"latent": latent, "label": label})


class LabelledImages(Dataset):
    """Images of a folder with one subfolder per class.

    Args:
        root: the folder.
        transform: of a PIL image to a tensor (3, H, W).

    Raises:
        UserError: an image cannot be read.
    """

    def __init__(self, root: Path, transform: v2.Transform):
        self.images = ImageFolder(str(root), transform, loader=_rgb)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> LabelledLatents:
        try:
            image, label = self.images[index]
        except (OSError, ValueError) as error:
            raise UserError(f"{self.images.samples[index][0]}: cannot be read as an image ({error})") from error
        return LabelledLatents(image, torch.tensor([label]))


def _rgb(path: str) -> Image.Image:
    """An image file as RGB, whatever its mode; errors as `open_image`."""
    return open_image(Path(path)).convert("RGB")
