"""Protocols of photographs (COCO): a frozen file names the captions, the noises, the reference and the size."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from diffgan.errors import UserError, first_line
from diffgan.evaluation.features.base import FID_FEATURES
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.protocols.coco_files import IMAGE_SUFFIXES, check_year, read_captions, reference_files
from diffgan.evaluation.protocols.coco_metrics import COCO_METRICS, MetricSettings
from diffgan.noise import SEEDS
from diffgan.packaged import find_config
from diffgan.storage import digests


@dataclass(frozen=True)
class CocoProtocol:
    """What is generated, what it is compared with, and the metrics.

    name: its name in records.
    captions: path or URL of a prompt file; one image is generated of each of its first `images` prompts.
    images: how many.
    seed_base: image i is generated from the noise of seed_base + i.
    side: every image is cropped to a square and resized to so many pixels before any network gets it.
    reference: folder of real images (searched recursively), or an .npz of their features' `mu` and `sigma`; null if no
        metric compares with real images.
    clip_model, clip_weights: names of open_clip (the second may be a file); null omits the CLIP score.
    metric_names: `metrics` in the file, names of `COCO_METRICS`; by default fid, and clip_score if there is a model.
    diversity_prompts, images_per_prompt: after the `images` rows, so many images of each of the first so many prompts,
        for the metrics of diversity.
    year: of COCO; captions that say another one are refused.
    reference_images: how many real images there must be; null: any number.
    """

    name: str
    captions: str
    images: int
    seed_base: int
    side: int
    reference: str | None = None
    clip_model: str | None = None
    clip_weights: str | None = None
    metric_names: tuple[str, ...] | None = None
    diversity_prompts: int = 0
    images_per_prompt: int = 0
    year: int | None = None
    reference_images: int | None = None

    @cached_property
    def prompts(self) -> list[str]:
        """The caption of every row; raises UserError if there are fewer than `images`, or of another year."""
        captions = read_captions(self.captions, self.images, self.name)
        if self.year is not None:
            check_year(self.captions, self.images, self.year, self.reference, self.name)
        varied = [caption for caption in captions[: self.diversity_prompts] for _ in range(self.images_per_prompt)]
        return captions + varied

    @property
    def seeds(self) -> range:
        varied = self.diversity_prompts * self.images_per_prompt
        return range(self.seed_base, self.seed_base + self.images + varied)

    @cached_property
    def reference_files(self) -> list[Path]:
        """The reference's images in the order of their names, or its one .npz.

        Raises:
            UserError: there is none, or another number than `reference_images`.
        """
        if self.reference is None:
            raise UserError(f"protocol {self.name}: a metric compares with real images; name a reference")
        files = reference_files(self.reference)
        if not files:
            raise UserError(
                f"{self.reference}: protocol {self.name} finds no reference there; put the real images "
                f"({', '.join(IMAGE_SUFFIXES)}) into this folder, or name an .npz of mu and sigma"
            )
        if files[0].suffix != ".npz" and self.reference_images not in (None, len(files)):
            raise UserError(
                f"{self.reference}: holds {len(files)} images, but protocol {self.name} compares with "
                f"{self.reference_images}; unpack all of them, and nothing else, into this folder"
            )
        return files

    @cached_property
    def listed(self) -> tuple[str, ...]:
        """The names of the metrics."""
        if self.metric_names is not None:
            return self.metric_names
        return ("fid",) if self.clip_model is None else ("fid", "clip_score")

    def metrics(self, extractor: str = FID_FEATURES) -> list[ImageMetric]:
        """The metrics that need no teacher, in the order of the tables' columns; extractor: name of the features."""
        return [self.metric(name, extractor) for name in self.listed if not _needs_teacher(name)]

    def teacher_metrics(self, extractor: str = FID_FEATURES) -> list[ImageMetric]:
        """The metrics that compare a student's images with its teacher's of the same captions and noises."""
        return [self.metric(name, extractor) for name in self.listed if _needs_teacher(name)]

    def metric(self, name: str, extractor: str = FID_FEATURES) -> ImageMetric:
        """The metric of a name in the list."""
        settings = MetricSettings(
            extractor,
            matched=slice(self.images),
            varied=slice(self.images, None),
            images_per_prompt=self.images_per_prompt,
            clip_model=self.clip_model,
            clip_weights=self.clip_weights,
        )
        return COCO_METRICS[name].build(settings)

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits: captions, real images, and what decides the images and the CLIP score.

        Of real images the names and sizes count, of an .npz and of a file of `clip_weights` the content. The list of
        metrics and the checks (`year`, `reference_images`) are not part of it.
        """
        own: list[Any] = [self.name, self.images, self.seed_base, self.side, self.clip_model]
        own.append(_content_or_name(self.clip_weights))
        if self.diversity_prompts:
            own += [self.diversity_prompts, self.images_per_prompt]
        prompts = self.prompts
        files = [] if self.reference is None else _identities(Path(self.reference), self.reference_files)
        return hashlib.blake2b(json.dumps([own, prompts, files]).encode(), digest_size=8).hexdigest()


def _needs_teacher(name: str) -> bool:
    return COCO_METRICS[name].needs == "teacher_images"


def _content_or_name(weights: str | None) -> str | None:
    """The digest of a file of weights; of anything else the name itself."""
    return weights if weights is None or not Path(weights).is_file() else digests.digest(Path(weights))


def _identities(folder: Path, files: list[Path]) -> list[Any]:
    """Names and sizes of real images; of statistics their content, as files of as many features have the same size."""
    if files == [folder]:
        return [digests.digest(folder)]
    return [(str(file.relative_to(folder)), file.stat().st_size) for file in files]


def read_protocol(path: Path) -> CocoProtocol:
    """A protocol of a YAML file, or the package's, with the fields of `CocoProtocol`; raises UserError for others."""
    try:
        given = dict(yaml.safe_load(Path(find_config(path)).read_text()))
        names = given.pop("metrics", None)
        protocol = CocoProtocol(**given, metric_names=None if names is None else tuple(names))
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError, TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(CocoProtocol)).replace("metric_names", "metrics")
        raise UserError(f"protocol {path}: is no YAML file with {known} ({first_line(error)})") from error
    _check(protocol, path)
    return protocol


def _check(protocol: CocoProtocol, path: Path) -> None:
    """Raises UserError naming the field whose value is not possible."""
    for name in ("captions", "reference", "clip_model", "clip_weights"):
        if not isinstance(value := getattr(protocol, name), str | None):
            raise UserError(f"protocol {path}: {name} is {value!r} and must be text")
    least_and_most = {
        "images": (2, SEEDS),
        "side": (1, 8192),
        "seed_base": (0, SEEDS),
        "diversity_prompts": (0, protocol.images),
        "images_per_prompt": (2 if protocol.diversity_prompts else 0, SEEDS),
    }
    for name, (least, most) in least_and_most.items():
        value = getattr(protocol, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"protocol {path}: {name} is {value!r} and must be a whole number from {least} to {most}")
    if protocol.seeds.stop > SEEDS:
        raise UserError(f"protocol {path}: the seeds of {protocol.images} images from seed_base on leave [0, 2^32)")
    if (protocol.clip_model is None) != (protocol.clip_weights is None):
        raise UserError(f"protocol {path}: give both clip_model and clip_weights, or neither")
    _check_metrics(protocol, path)


def _check_metrics(protocol: CocoProtocol, path: Path) -> None:
    for name in protocol.listed:
        if name not in COCO_METRICS:
            raise UserError(f"protocol {path}: metric {name!r} is none of {', '.join(COCO_METRICS)}")
        needs = COCO_METRICS[name].needs
        if needs != "teacher_images" and not getattr(protocol, needs):
            raise UserError(f"protocol {path}: metric {name} needs {needs}")
