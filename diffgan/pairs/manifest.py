"""What a pair set is: its manifest, and how its shards are cut and called."""

import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_origin

from diffgan.errors import UserError
from diffgan.storage.atomic import write_atomic
from diffgan.storage.store import Store

MANIFEST = "manifest.json"
LIBRARIES = ("torch", "diffusers", "transformers")
# Told, not compared: they say how a set was made, not which set it is.
RECORDED = ("teacher", "batch_size", "versions", "compile")
LEAST = {"seed_base": 0}  # of the integers, which else are at least 1
DEFAULTS = {"compile": False}  # of fields that manifests did not always have
KINDS = {str: "a string", dict: "an object", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class Manifest:
    """What a pair set is.

    teacher: path or hub id; another path to the same weights is the same teacher, so `teacher_digest` decides.
    precision: Lightning's name of the arithmetic the teacher ran in.  batch_size: pairs solved at once; it moves a
    latent by rounding only, so a set may be finished with another one.  versions: of the libraries it was started with.
    compile: whether the network was compiled then, which moves a latent by rounding too.
    """

    teacher: str
    teacher_digest: str
    scheduler: dict[str, Any]
    steps: int
    guidance: float
    timestep_spacing: str
    precision: str
    latent_space: dict[str, float]
    latent_shape: list[int]
    prompts_digest: str
    seed_base: int
    pairs: int
    shard_size: int
    store_noise: bool
    batch_size: int
    versions: dict[str, str]
    compile: bool = False

    @classmethod
    def read(cls, store: Store) -> "Manifest":
        """The manifest of a pair set.

        Raises:
            UserError: there is none, or it is not a manifest of this version.
        """
        if (content := store.read(MANIFEST)) is None:
            raise UserError(f"{store.path(MANIFEST)}: no pair set; make one with `diffgan predict`")
        return cls.parse(content, store.path(MANIFEST))

    @classmethod
    def parse(cls, content: bytes, file: str) -> "Manifest":
        """The manifest in the content of a file; UserError if it is not one of this version."""
        try:
            values = json.loads(content)
        except ValueError as error:
            raise UserError(f"{file}: not a manifest ({error}); make the set in another folder") from error
        values = DEFAULTS | values if isinstance(values, dict) else {}
        names = {field.name for field in fields(cls)}
        if odd := sorted(names.symmetric_difference(values)):
            raise UserError(f"{file}: no manifest of this version (field {odd[0]}); make the set in another folder")
        for field in fields(cls):
            if wanted := _odd(field.name, field.type, value := values[field.name]):
                raise UserError(
                    f"{file}: {field.name} is {value!r} there and must be {wanted}; make the set in another folder"
                )
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Write the manifest in one step: a reader sees none or all of it."""
        write_atomic(folder / MANIFEST, self.content())

    def content(self) -> bytes:
        """What its file holds."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()

    def identity(self) -> dict[str, Any]:
        """The fields that two manifests of one set share, as JSON would give them back."""
        return json.loads(json.dumps({name: value for name, value in asdict(self).items() if name not in RECORDED}))

    def require(self, wanted: dict[str, Any], source: Path | str) -> None:
        """Raises: UserError naming the first field in which the `identity` that `source` holds is another one."""
        held = self.identity()
        for name in held:
            if held[name] != wanted.get(name):
                raise UserError(
                    f"{source}: another pair set: {name} is {wanted.get(name)!r} there and {held[name]!r} here; "
                    "choose another folder, or the configuration that made this one"
                )

    def require_whole(self, store: Store) -> None:
        """Raises: UserError naming the first shard that the set's store does not hold."""
        there = store.entries()
        if missing := [name for name in map(self.name, range(self.shards)) if name not in there]:
            more = len(missing) - 1
            others = f", and {more} other{'s' * (more > 1)}" if more else ""
            raise UserError(
                f"{store.path(missing[0])}: shard is missing{others}; run `diffgan predict` with the configuration of "
                "this set again"
            )

    def require_still(self, store: Store) -> None:
        """Raises: UserError if the set in the store is not this one any more: someone deleted or replaced it."""
        if (content := store.read(MANIFEST)) is None:
            raise UserError(f"{store.path(MANIFEST)}: is gone; run the same command again")
        if Manifest.parse(content, store.path(MANIFEST)).identity() != self.identity():
            raise UserError(f"{store.path(MANIFEST)}: is another set's now; choose another folder")

    @property
    def shards(self) -> int:
        """Number of shards of the whole set."""
        return -(-self.pairs // self.shard_size)

    def span(self, shard: int) -> range:
        """Numbers of the pairs in a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.pairs))

    def name(self, shard: int) -> str:
        """The file of a shard."""
        return f"pairs-{shard:05d}-of-{self.shards:05d}.safetensors"

    def file(self, folder: Path, shard: int) -> Path:
        """Where a shard lies."""
        return folder / self.name(shard)


def _odd(name: str, annotation: Any, value: Any) -> str | None:
    """What a field must hold, if the value is not that."""
    if name == "latent_shape":
        right = isinstance(value, list) and len(value) == 3 and all(type(side) is int and side > 0 for side in value)
        return None if right else "three integers of at least 1"
    if annotation is int:
        least = LEAST.get(name, 1)
        return None if type(value) is int and value >= least else f"an integer of at least {least}"
    kind = get_origin(annotation) or annotation
    right = type(value) in ((int, float) if kind is float else (kind,))  # JSON may have 3 for 3.0; true is no number
    return None if right else KINDS[kind]


def versions() -> dict[str, str]:
    """Versions of the libraries that decide the numbers."""
    return {name: version(name) for name in LIBRARIES}
