"""The teacher's images of a protocol's rows: what a student's images of the same noises are compared with."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line
from diffgan.evaluation.features.registry import Extractors
from diffgan.evaluation.grain import View
from diffgan.evaluation.image_batch import ImageBatch
from diffgan.evaluation.metrics.statistics import FeatureStatistics
from diffgan.evaluation.real_images import RealImages, cache_file, cached_tensors
from diffgan.evaluation.work_split import WorkSplit
from diffgan.images import read_rgb, rgb_tensor
from diffgan.storage.json_files import read_object

TEACHER = "teacher"  # name of the set of the teacher's images
INDEX = "images.json"
MADE_BY = ("pipeline", "config")  # what it says of the pipeline: name and digests, and how it was called
REMEDY = "write it with `diffgan evaluate ... --save_images FOLDER` of the teacher on this protocol"


class TeacherImages:
    """A folder of the teacher's images: `00000.png`, `00001.png`, ..., one of each row, and `images.json`.

    made_by: pipeline and config that made them, for records; without what the folder does not say.

    Args:
        folder: written by `diffgan evaluate --save_images`.
        protocol, digest, count: name and digest of the protocol that images are compared by, and number of its rows.

    Raises:
        UserError: the folder holds no such images, images of another protocol, or too few.
    """

    def __init__(self, folder: Path, protocol: str, digest: str, count: int):
        self.folder, self.protocol, self.count = folder, protocol, count
        record = _read_index(folder)
        self.made_by = {key: record[key] for key in MADE_BY if key in record}
        if record.get("protocol_digest") != digest:
            theirs = f"{record.get('protocol')} ({record.get('protocol_digest')})"
            raise UserError(f"{folder}: holds images of protocol {theirs}, not of {protocol} ({digest}); {REMEDY}")
        missing = [row for row in range(count) if not self.file(row).is_file()]
        if missing:
            name = self.file(missing[0]).name
            raise UserError(
                f"{folder}: {len(missing)} of the {count} images of protocol {protocol} are missing, "
                f"the first is {name}; {REMEDY}"
            )

    def file(self, row: int) -> Path:
        """The file of a row's image."""
        return self.folder / f"{row:05}.png"

    def read(self, rows: list[int]) -> Tensor:
        """The images of some rows: (N, 3, H, W) uint8; raises UserError naming a file that is no image."""
        images = [rgb_tensor(read_rgb(self.file(row))) for row in rows]
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                raise UserError(f"{self.file(row)}: is of another size than {self.file(rows[0]).name}; {REMEDY}")
        return torch.stack(images)

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits over `images.json` and the files' sizes and times."""
        state = hashlib.blake2b((self.folder / INDEX).read_bytes(), digest_size=8)
        for row in range(self.count):
            status = self.file(row).stat()
            state.update(f" {status.st_size} {status.st_mtime_ns}".encode())
        return state.hexdigest()


def _read_index(folder: Path) -> dict[str, Any]:
    try:
        return read_object(folder / INDEX)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: holds no readable {INDEX} ({first_line(error)}); {REMEDY}") from error


class WithTeacherImages(RealImages):
    """The real images of a protocol and, as the set "teacher", the features of the teacher's images of all its rows.

    Args:
        real: the protocol's real images.
        teacher: the teacher's images.
        batch_of: rows and their images (N, 3, H, W) uint8 in full size -> a batch, as generated images become one.
        extractors: of the evaluation.
        cache: folder where features are kept between runs; None: in memory only.
        batch_size: images of one process at once.
        split: by which processes features are computed.
    """

    def __init__(
        self,
        real: RealImages,
        teacher: TeacherImages,
        batch_of: Callable[[list[int], Tensor], ImageBatch],
        extractors: Extractors,
        cache: Path | None,
        batch_size: int,
        split: WorkSplit,
    ):
        self.real, self.teacher, self.batch_of, self.extractors = real, teacher, batch_of, extractors
        self.cache, self.batch_size, self.split = cache, batch_size, split
        self._features: dict[tuple[View, str], Tensor] = {}

    def images(self, name: str) -> Tensor:
        return self.real.images(name)

    def captions(self, name: str) -> list[str]:
        return self.real.captions(name)

    def statistics(self, name: str, view: View, extractor: str | None = None) -> FeatureStatistics:
        if name != TEACHER:
            return self.real.statistics(name, view, extractor)
        return super().statistics(name, view, extractor)

    def features(self, name: str, view: View, extractor: str | None = None) -> Tensor:
        if name != TEACHER:
            return self.real.features(name, view, extractor)
        teacher, network = self.teacher, self.extractors[extractor]
        key = view, network.name
        if key not in self._features:
            file = cache_file(self.cache, TEACHER, teacher.protocol, teacher.digest, network, view)
            tensors = cached_tensors(file, lambda: {"features": self._compute(view, extractor)}, self.split)
            self._features[key] = tensors["features"]
        return self._features[key]

    def _compute(self, view: View, extractor: str | None) -> Tensor:
        own = self.split.batches(self.teacher.count, self.batch_size)
        features = [
            self.batch_of(rows, self.teacher.read(rows)).features(view, extractor)
            for rows in self.split.progress(own, "evaluate: features of the teacher's images")
        ]
        return self.split.in_order(torch.cat(features), self.teacher.count, self.batch_size)
