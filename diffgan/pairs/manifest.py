"""The manifest of a pair set: what the set is, and which pairs lie in which shard."""

import json
import math
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin

from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic
from diffgan.storage.json_files import parse_object
from diffgan.storage.store import Store
from diffgan.teachers.earlier import remedy_for

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "diffusers", "transformers")
# Fields that are recorded and not compared: they say how a set was made, not which set it is.
RECORDED = ("teacher", "batch_size", "versions", "compile", "device", "guidance_kind")
MADE = ("device", "versions", "compile")  # what the rounding of a batch depends on
MINIMUM = {"seed_base": 0}  # of integer fields; of those not named here it is 1
# Largest values of integer fields, so that reading a manifest never leads to endless work. `shards` is their number.
MAXIMUM = {
    "pairs": 10**9,
    "shard_size": 10**6,
    "shards": 10**6,
    "batch_size": 10**6,
    "steps": 10**5,
    "seed_base": 2**32,
}
LATENT_VALUES = 2**24  # at most, of one latent: a shape of three sides
DEFAULTS = {"compile": False, "device": "", "guidance_kind": "cfg"}  # of fields that older manifests lack
OMITTED = ("device", "guidance_kind")  # fields that are not written where they have their default
TYPE_NAMES = {str: "a string", dict[str, Any]: "an object", float: "a finite number", bool: "true or false"}
GUIDANCE_KINDS = ("cfg", "embedded", "none")  # the constants of `diffgan.teachers.guidance`, which imports torch
MAX_BYTES = 1 << 20  # of a manifest's file
SHOWN = 60  # characters of a wrong value in a message


@dataclass(frozen=True)
class Manifest:
    """What a pair set is.

    teacher: path or hub id; another path to the same weights is the same teacher, so `teacher_digest` decides.
    precision: Lightning's name of the precision in which the teacher ran.  batch_size: pairs solved at once; another
    one changes latents by rounding only, so a set may be finished with another one.  versions: of the libraries when
    the set was started.  compile: whether the network was compiled then, which changes latents by rounding too.
    device: what computed then, see `diffgan.pairs.devices`; "" in manifests of versions before 0.3.  guidance_kind: how
    the network was guided, see `Teacher`.
    """

    teacher: str
    teacher_digest: str
    scheduler: dict[str, Any]
    steps: int
    guidance: float
    timestep_spacing: str
    precision: str
    latent_space: dict[str, Any]
    latent_shape: list[int]
    prompts_digest: str
    seed_base: int
    pairs: int
    shard_size: int
    store_noise: bool
    batch_size: int
    versions: dict[str, str]
    compile: bool = False
    device: str = ""
    guidance_kind: str = "cfg"

    # ---- reading and writing ----

    @classmethod
    def read(cls, store: Store) -> "Manifest":
        """The manifest of a pair set.

        Raises:
            UserError: there is none, or it is not a manifest of this version.
        """
        if (content := store.read(MANIFEST, MAX_BYTES)) is None:
            raise UserError(f"{store.path(MANIFEST)}: no pair set; make one with `diffgan predict`")
        return cls.parse(content, store.path(MANIFEST))

    @classmethod
    def parse(cls, content: bytes, file: str) -> "Manifest":
        """The manifest in the content of a file.

        Raises:
            UserError: it is not a manifest of this version, or a field has a value of another type or range.
        """
        try:
            values = DEFAULTS | parse_object(content, MAX_BYTES)
        except ValueError as error:
            raise UserError(f"{file}: not a manifest ({error}); make the set in another folder") from error
        names = {field.name for field in fields(cls)}
        if unexpected := sorted(names.symmetric_difference(values)):
            raise UserError(
                f"{file}: not a manifest of this version (field {unexpected[0]}); make the set in another folder"
            )
        manifest = cls(**values)
        if fault := manifest.fault():
            raise UserError(f"{file}: {fault}; make the set in another folder")
        return manifest

    def fault(self) -> str | None:
        """The first field whose value is of another type or range, in words; None if there is none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if requirement := _unmet_requirement(field.name, field.type, value):
                return f"{field.name} is {repr(value)[:SHOWN]} there and must be {requirement}"
        if self.shards > MAXIMUM["shards"]:
            return f"{self.pairs} pairs in shards of {self.shard_size} are more than {MAXIMUM['shards']} shards"
        return None

    def write(self, folder: Path) -> None:
        """Write the manifest atomically."""
        write_atomic(folder / MANIFEST, self.content())

    def content(self) -> bytes:
        """The bytes of the manifest's file."""
        omitted = [name for name in OMITTED if getattr(self, name) == DEFAULTS[name]]
        values = {name: value for name, value in asdict(self).items() if name not in omitted}
        return (json.dumps(values, indent=2) + "\n").encode()

    def made(self) -> dict[str, Any] | None:
        """How the worker with this manifest makes batches, for the headers of its shards; None if that is unknown.

        It is unknown in sets that older versions have started, whose shards keep their bytes.
        """
        return {name: getattr(self, name) for name in MADE} if self.device else None

    # ---- comparing ----

    def identity(self) -> dict[str, Any]:
        """The fields that all manifests of one set share, as JSON would return them."""
        compared = {name: value for name, value in asdict(self).items() if name not in RECORDED}
        return json.loads(json.dumps(compared))

    def require_same(self, identity: dict[str, Any], source: Path | str) -> None:
        """Compare with the `identity` that a file holds.

        Args:
            identity: what the file holds; it may have more fields.
            source: the file, for the message.

        Raises:
            UserError: names the first field that differs.
        """
        for name, value in self.identity().items():
            if value != identity.get(name):
                remedy = "choose another folder, or the configuration that made this one"
                raise UserError(
                    f"{source}: another pair set: {name} is {identity.get(name)!r} there and {value!r} here; "
                    + (remedy_for(str(identity.get(name)), remedy) if name == "teacher_digest" else remedy)
                )

    def require_complete(self, store: Store) -> None:
        """Raises: UserError naming the first shard that is missing in the set's store."""
        entries = store.entries()
        names = (self.name(shard) for shard in range(self.shards))
        if missing := [name for name in names if name not in entries]:
            more = len(missing) - 1
            others = f", and {more} other{'s' * (more > 1)}" if more else ""
            raise UserError(
                f"{store.path(missing[0])}: shard is missing{others}; run `diffgan predict` with the configuration of "
                "this set again"
            )

    def require_unchanged(self, store: Store) -> None:
        """Raises: UserError if the set in the store was deleted or replaced by another one."""
        file = store.path(MANIFEST)
        if (content := store.read(MANIFEST, MAX_BYTES)) is None:
            raise UserError(f"{file}: was deleted; run the same command again")
        if Manifest.parse(content, file).identity() != self.identity():
            raise UserError(f"{file}: is now the manifest of another pair set; choose another folder")

    @property
    def image_size(self) -> list[int]:
        """[height, width] of the images of the set's latents, in pixels."""
        return [int(self.latent_space["factor"]) * side for side in self.latent_shape[1:]]

    # ---- shards ----

    @property
    def shards(self) -> int:
        """Number of shards of the complete set."""
        return -(-self.pairs // self.shard_size)

    def span(self, shard: int) -> range:
        """Numbers of the pairs in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.pairs))

    def name(self, shard: int) -> str:
        """File name of a shard."""
        return f"pairs-{shard:05d}-of-{self.shards:05d}.safetensors"

    def file(self, folder: Path, shard: int) -> Path:
        """Path of a shard."""
        return folder / self.name(shard)


def _unmet_requirement(name: str, annotation: Any, value: Any) -> str | None:
    """What a field must be, if the value is not that."""
    if name == "latent_shape":
        return None if _is_shape(value) else f"three integers of at least 1 whose product is at most {LATENT_VALUES}"
    if annotation is int:
        minimum, maximum = MINIMUM.get(name, 1), MAXIMUM[name]
        valid = type(value) is int and minimum <= value <= maximum
        return None if valid else f"an integer of at least {minimum} and at most {maximum}"
    if name == "guidance_kind":
        return None if value in GUIDANCE_KINDS else f"one of {', '.join(GUIDANCE_KINDS)}"
    if name == "scheduler":
        return None if isinstance(value, dict) and not _has_nan(value) else "an object without NaN"
    if name == "latent_space":
        valid = isinstance(value, dict) and all(_is_of_space(key, entry) for key, entry in value.items())
        return None if valid else "an object of numbers (mean and std: lists of numbers)"
    if name == "versions":
        valid = isinstance(value, dict) and all(isinstance(entry, str) for entry in value.values())
        return None if valid else "an object of strings"
    return None if _is_a(get_origin(annotation) or annotation, value) else TYPE_NAMES[annotation]


def _is_a(kind: type, value: Any) -> bool:
    """Whether a value read from JSON is of a type; a number may be written as 3 for 3.0, but must be finite."""
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return type(value) is kind


def _is_of_space(key: str, value: Any) -> bool:
    if key in ("mean", "std"):
        return isinstance(value, list) and all(_is_a(float, entry) for entry in value)
    return _is_a(float, value)


def _has_nan(value: Any) -> bool:
    """Whether a number in nested values read from JSON is NaN; schedulers of diffusers have infinity as a setting."""
    if isinstance(value, dict | list):
        return any(map(_has_nan, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float) and math.isnan(value)


def _is_shape(value: Any) -> bool:
    valid = isinstance(value, list) and len(value) == 3 and all(type(side) is int and side > 0 for side in value)
    return valid and math.prod(value) <= LATENT_VALUES


def versions() -> dict[str, str]:
    """Versions of the installed libraries that decide the numbers."""
    return {name: version(name) for name in LIBRARIES}
