"""A folder of generated images: of one run alone, resumed by the same command."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.evaluation.layouts import Flat, Layout
from diffgan.evaluation.provenance import write_json
from diffgan.evaluation.work_split import WorkSplit
from diffgan.images import read_rgb, rgb_tensor
from diffgan.storage.atomic import PARTIAL
from diffgan.storage.json_files import read_object

RECORD = "images.json"  # is there when all images are
STARTED = "images.started.json"  # the same record, until then
OTHERWISE = "name another folder, or remove this one to make its images again"


class SavedImages:
    """The images of a run in a folder. A folder of another run is refused.

    `images.json` says which run: protocol, protocol_digest, images, layout, pipeline and config, as records do.

    Args:
        folder: is created.
        layout: where the images of each prompt are.
        record: what decides the images.
        split: this process's place; the first one checks and marks the folder (collective).

    Raises:
        UserError: the folder holds something else, or images of another run.
    """

    def __init__(self, folder: Path, layout: Layout, record: dict[str, Any], split: WorkSplit):
        self.folder, self.layout, self.record, self.split = folder, layout, record, split
        if split.rank == 0:
            self._claim()
        split.agree(True)  # the others wait

    @property
    def images(self) -> int:
        """Number of images in all."""
        return len(self.layout.prompts) * self.layout.per_prompt

    def are_complete(self, numbers: list[int]) -> bool:
        """Whether the images of all these prompts are there."""
        return all(self.layout.is_complete(self.folder, number) for number in numbers)

    def read(self, numbers: list[int]) -> Tensor | None:
        """The images of these prompts in the flat layout, (N, 3, H, W) uint8; None if one is missing.

        Raises:
            UserError: a file is damaged, or of another size than the others.
        """
        assert isinstance(self.layout, Flat)
        if not self.are_complete(numbers):
            return None
        files = [self.folder / file for number in numbers for file in self.layout.files(number)]
        images = [rgb_tensor(read_rgb(file, "remove it and run the same command again")) for file in files]
        for file, image in zip(files, images, strict=True):
            if image.shape != images[0].shape:
                raise UserError(f"{file}: has another size than {files[0]}; remove it to make it again")
        return torch.stack(images)

    def write(self, numbers: list[int], images: Tensor) -> None:
        """Write the images of these prompts: (N * per_prompt, 3, H, W) uint8."""
        for number, own in zip(numbers, images.split(self.layout.per_prompt), strict=True):
            self.layout.write(self.folder, number, own)

    def finish(self) -> None:
        """Write `images.json`: every process has written its images (collective)."""
        self.split.agree(True)
        if self.split.rank == 0 and not (self.folder / RECORD).is_file():
            for partial in self.folder.rglob(f"*{PARTIAL}"):  # of a process that was killed while it wrote
                partial.unlink()
            self.layout.finish(self.folder)
            (self.folder / STARTED).replace(self.folder / RECORD)

    def _claim(self) -> None:
        """Mark the folder as this run's, unless it is already; raises UserError if it is anything else."""
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"--save_images: {self.folder} is a file; name a folder")
        for name in (RECORD, STARTED):
            if (self.folder / name).is_file():
                self._require_same(self.folder / name)
                return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise UserError(f"--save_images: {self.folder} holds other files and no {RECORD}; name an empty folder")
        write_json(self.record, self.folder / STARTED)

    def _require_same(self, file: Path) -> None:
        try:
            found = read_object(file)
            different = [key for key in self.record | found if found.get(key) != self.record.get(key)]
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: cannot be read ({first_line(error)}); {OTHERWISE}") from error
        if different:
            ours, theirs = self.record.get(different[0]), found.get(different[0])
            raise UserError(
                f"--save_images: {self.folder} holds images of another run ({different[0]} is {_short(theirs)} there "
                f"and {_short(ours)} here); {OTHERWISE}"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
