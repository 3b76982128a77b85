"""Protocols of photographs (COCO): a frozen file names the captions, the noises, the reference and the size."""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import yaml

from diffgan.errors import UserError, first_line
from diffgan.noise import SEEDS
from diffgan.prompts import PromptFile

PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class CocoProtocol:
    """What is generated, and what it is compared with.

    name: what records call it.
    captions: path or URL of a prompt file; its first `images` prompts count, one image is made of each.
    images: how many.
    seed_base: image i begins with the noise of seed_base + i.
    side: every picture is cut to a square and resized to so many pixels before any network looks at it.
    reference: folder of real pictures (searched in depth), or an .npz of their features' `mu` and `sigma`.
    clip_model, clip_weights: names of open_clip (the second may be a file); null leaves the CLIP score out.
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
        """The pictures of the reference in order of their names, or its one .npz; raises UserError if there is none."""
        place = Path(self.reference)
        if place.suffix == ".npz" and place.is_file():
            return [place]
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(
                f"{place}: protocol {self.name} finds no reference there; put the real pictures "
                f"({', '.join(PICTURES)}) into this folder, or name an .npz of mu and sigma"
            )
        return files

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits: the captions, names and sizes of the reference's files, and all other fields."""
        place = Path(self.reference)
        files = [(str(f.relative_to(place)) if f != place else f.name, f.stat().st_size) for f in self.reference_files]
        own = [self.name, self.images, self.seed_base, self.side, self.clip_model, self.clip_weights]
        return hashlib.blake2b(json.dumps([own, self.prompts, files]).encode(), digest_size=8).hexdigest()


def read_protocol(path: Path) -> CocoProtocol:
    """A protocol of a YAML file with the fields of `CocoProtocol`; raises UserError if it is none."""
    try:
        given = yaml.safe_load(path.read_text())
        protocol = CocoProtocol(**given)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError) as error:
        raise UserError(
            f"protocol {path}: is no YAML file with {', '.join(f.name for f in fields(CocoProtocol))} "
            f"({first_line(error)})"
        ) from error
    for name, (least, most) in {"images": (2, SEEDS), "side": (1, 8192), "seed_base": (0, SEEDS)}.items():
        value = getattr(protocol, name)
        if not isinstance(value, int) or not least <= value <= most:
            raise UserError(f"protocol {path}: {name} is {value!r} and must be a whole number from {least} to {most}")
    if protocol.seeds.stop > SEEDS:
        raise UserError(f"protocol {path}: the seeds of {protocol.images} images from seed_base on leave [0, 2^32)")
    if (protocol.clip_model is None) != (protocol.clip_weights is None):
        raise UserError(f"protocol {path}: give both clip_model and clip_weights, or neither")
    return protocol


# ---- pictures as every network sees them ----
