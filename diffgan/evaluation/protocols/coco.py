"""Protocols of photographs (COCO): a frozen file names the captions, the noises, the reference and the size."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import yaml

from diffgan.errors import UserError, first_line
from diffgan.evaluation.features.base import FID_FEATURES
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.metrics.clip_score import CLIPScore
from diffgan.evaluation.metrics.distances import FrechetDistance
from diffgan.noise import SEEDS
from diffgan.prompts import PromptFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class CocoProtocol:
    """What is generated, what it is compared with, and the metrics.

    name: its name in records.
    captions: path or URL of a prompt file; one image is generated of each of its first `images` prompts.
    images: how many.
    seed_base: image i is generated from the noise of seed_base + i.
    side: every image is cropped to a square and resized to so many pixels before any network gets it.
    reference: folder of real images (searched recursively), or an .npz of their features' `mu` and `sigma`.
    clip_model, clip_weights: names of open_clip (the second may be a file); null omits the CLIP score.
    """

    name: str
    captions: str
    images: int
    seed_base: int
    side: int
    reference: str
    clip_model: str | None = None
    clip_weights: str | None = None

    @cached_property
    def prompts(self) -> list[str]:
        """The captions; raises UserError if there are fewer than `images`."""
        file = PromptFile(self.captions)
        if len(file) < self.images:
            raise UserError(f"{self.captions}: {len(file)} captions, but protocol {self.name} needs {self.images}")
        return file.read(range(self.images))

    @property
    def seeds(self) -> range:
        return range(self.seed_base, self.seed_base + self.images)

    @cached_property
    def reference_files(self) -> list[Path]:
        """The reference's images in the order of their names, or its one .npz; raises UserError if there is none."""
        folder = Path(self.reference)
        if folder.suffix == ".npz" and folder.is_file():
            return [folder]
        files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise UserError(
                f"{folder}: protocol {self.name} finds no reference there; put the real images "
                f"({', '.join(IMAGE_SUFFIXES)}) into this folder, or name an .npz of mu and sigma"
            )
        return files

    def metrics(self, extractor: str = FID_FEATURES) -> list[ImageMetric]:
        """The metrics in the order of the tables' columns; extractor: name of the features of the distance."""
        clip = None if self.clip_model is None else CLIPScore(self.clip_model, self.clip_weights)
        return coco_metrics(extractor, clip)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits: the captions, names and sizes of the reference's files, and all other fields."""
        folder = Path(self.reference)
        files = [(_name_below(folder, file), file.stat().st_size) for file in self.reference_files]
        own = [self.name, self.images, self.seed_base, self.side, self.clip_model, self.clip_weights]
        return hashlib.blake2b(json.dumps([own, self.prompts, files]).encode(), digest_size=8).hexdigest()


def _name_below(folder: Path, file: Path) -> str:
    return file.name if file == folder else str(file.relative_to(folder))


def coco_metrics(extractor: str = FID_FEATURES, clip: CLIPScore | None = None) -> list[ImageMetric]:
    """The metrics of every COCO protocol; without a `clip` model the CLIP score is omitted."""
    metrics: list[ImageMetric] = [FrechetDistance(extractor)]
    if clip is not None:
        metrics.append(clip)
    return metrics


def read_protocol(path: Path) -> CocoProtocol:
    """A protocol of a YAML file with the fields of `CocoProtocol`; raises UserError if it is none."""
    try:
        protocol = CocoProtocol(**yaml.safe_load(path.read_text()))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UserError(
            f"protocol {path}: is no YAML file with {', '.join(f.name for f in fields(CocoProtocol))} "
            f"({first_line(error)})"
        ) from error
    _check(protocol, path)
    return protocol


def _check(protocol: CocoProtocol, path: Path) -> None:
    """Raises UserError naming the field whose value is not possible."""
    for name, (least, most) in {"images": (2, SEEDS), "side": (1, 8192), "seed_base": (0, SEEDS)}.items():
        value = getattr(protocol, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"protocol {path}: {name} is {value!r} and must be a whole number from {least} to {most}")
    if protocol.seeds.stop > SEEDS:
        raise UserError(f"protocol {path}: the seeds of {protocol.images} images from seed_base on leave [0, 2^32)")
    if (protocol.clip_model is None) != (protocol.clip_weights is None):
        raise UserError(f"protocol {path}: give both clip_model and clip_weights, or neither")
