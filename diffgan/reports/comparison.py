"""Teacher and student on held-out pairs, as `diffgan test` stores them for the page: images, distances, origin."""

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic
from diffgan.storage.json_files import read_object

MAX_BYTES = 256 << 20  # of a record that is read: its images are in it
RECORD = "report.json"  # in the run's folder
NUMBERS = {"steps": int, "guidance": float, "pair_count": int, "images_seen": int}  # fields of a comparison
DATA_URI = re.compile(r"data:image/(png|webp);base64,[A-Za-z0-9+/]+=*")


@dataclass(frozen=True)
class ComparedPair:
    """A held-out pair: the teacher's image, and the student's of the same noise and prompt.

    number: of the pair in its set.  seed: of the noise.  distance: of the student's latent to the teacher's.
    teacher, student: the images as data URIs.
    """

    number: int
    seed: int
    prompt: str
    distance: float
    teacher: str
    student: str


@dataclass(frozen=True)
class Origin:
    """What wrote the record.

    command: the command line.  version: of the package.  commit: of its git repository, if it has one.
    written: time, in UTC.
    """

    command: str
    version: str
    commit: str | None
    written: str


@dataclass(frozen=True)
class Comparison:
    """Teacher and student of a run on the pairs that its training did not use.

    teacher, teacher_digest: path or hub id, and the digest of its weights.  steps, guidance: with which it made the
    pairs.  pair_set, pair_count: folder of the set and pairs in it.  images_seen: by the student.
    image_size: [height, width] of the generated images, in pixels.  distance_name: the distance, in words.
    distances: of all held-out pairs, in the order of the set.  first: the first of them.  largest: those with the
    largest distances, in falling order.
    """

    origin: Origin
    teacher: str
    teacher_digest: str
    steps: int
    guidance: float
    pair_set: str
    pair_count: int
    images_seen: int
    image_size: list[int]
    distance_name: str
    distances: list[float]
    first: list[ComparedPair]
    largest: list[ComparedPair]

    def write(self, run: Path) -> None:
        """Write the record in the run's folder, atomically."""
        write_atomic(run / RECORD, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, run: Path) -> "Comparison":
        """The record in the run's folder.

        Raises:
            UserError: it is missing or damaged, or an image in it is not a data URI.
        """
        path = run / RECORD
        try:
            return cls._parse(read_object(path, MAX_BYTES))
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}; run diffgan test with the callback ComparePairs") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            problem = f"is no comparison of teacher and student ({type(error).__name__}: {error})"
            raise UserError(f"{path}: {problem}; run diffgan test again") from error

    @classmethod
    def _parse(cls, values: dict[str, Any]) -> "Comparison":
        """The record of parsed JSON; a value that is missing or of another kind raises an error."""
        parsed = {name: kind(values[name]) for name, kind in NUMBERS.items()}
        parsed |= {group: [_pair(pair) for pair in values[group]] for group in ("first", "largest")}
        parsed["image_size"] = [int(length) for length in values["image_size"]]
        parsed["distances"] = [float(distance) for distance in values["distances"]]
        comparison = cls(**{**values, **parsed, "origin": Origin(**values["origin"])})
        if not comparison.first or not comparison.distances or len(comparison.image_size) != 2:
            raise ValueError("it holds no pairs")
        return comparison


def _pair(values: dict[str, Any]) -> ComparedPair:
    pair = ComparedPair(**values)
    if not all(DATA_URI.fullmatch(image) for image in (pair.teacher, pair.student)):
        raise ValueError(f"pair {pair.number} holds no PNG or WebP image")
    return replace(pair, distance=float(pair.distance))
