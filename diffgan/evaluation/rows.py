"""Rows: how a pipeline of diffusers is called, as a short YAML file says it."""

import difflib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from diffgan.errors import UserError, first_line
from diffgan.packaged import find_config

SAFE = ".safetensors"
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")  # opening such a file can run code
DTYPES = ("float32", "bfloat16", "float16")
CLASS = "class"  # in `scheduler`; the other keys are changes of its configuration


@dataclass(frozen=True)
class Lora:
    """A LoRA that is merged into the networks.  file: path, or "owner/model/file" on the hub.  scale: its strength."""

    file: str
    scale: float = 1.0


@dataclass(frozen=True)
class Row:
    """How a pipeline is called.

    name: what the tables call it.
    pipeline: directory, hub id or "glyphs".
    unet: weights in place of the pipeline's UNet: a .safetensors file of the same architecture (path, or
        "owner/model/file" on the hub), or a directory or hub id of a UNet with its own configuration.
    lora: a LoRA on top.
    scheduler: `class` names a scheduler class of diffusers, the other keys change its configuration; without `class`
        that of the pipeline's own scheduler.
    steps, timesteps: the number of steps, or the timesteps themselves; one of both.
    guidance: `guidance_scale`; at most 1 is none.
    dtype: of the networks, where the command line does not say it.
    call: further arguments of the pipeline's call.
    """

    name: str
    pipeline: str
    guidance: float
    unet: str | None = None
    lora: Lora | None = None
    scheduler: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    timesteps: list[int] | None = None
    dtype: str | None = None
    call: dict[str, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What the row says beside name, pipeline and dtype, as plain JSON values."""
        values = asdict(self)
        return {key: value for key, value in values.items() if value and key not in ("name", "pipeline", "dtype")} | {
            "guidance": self.guidance
        }


def is_row(pipeline: str) -> bool:
    """Whether this names a row file and not a pipeline."""
    return pipeline.endswith((".yaml", ".yml"))


def read_row(path: Path) -> Row:
    """The row of a YAML file, or the package's, with the keys of `Row`.

    Raises:
        UserError: the file cannot be read, or a key or value is not possible.
    """
    try:
        values = yaml.safe_load(Path(find_config(path)).read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"row {path}: cannot be read as YAML ({first_line(error)})") from error
    try:
        _check_keys(values, Row, "")
        if values.get("lora") is not None:
            _check_keys(values["lora"], Lora, "lora.")
            values = values | {"lora": Lora(**values["lora"])}
        row = Row(**values)
        _check(row)
    except UserError as error:
        raise UserError(f"row {path}: {error}") from error
    return row


def _check_keys(values: Any, kind: type, place: str) -> None:
    """Raises UserError if this is no mapping with the fields of a dataclass."""
    known = [f.name for f in fields(kind)]
    if not isinstance(values, dict):
        raise UserError(f"{place.rstrip('.') or 'the file'} must be a mapping with the keys {', '.join(known)}")
    for key in values:
        if key not in known:
            similar = difflib.get_close_matches(str(key), known, n=1)
            offer = f"did you mean {place}{similar[0]}?" if similar else f"known are {', '.join(known)}"
            raise UserError(f"unknown key {place}{key}; {offer}")
    required = {Row: ("name", "pipeline", "guidance"), Lora: ("file",)}[kind]
    for key in required:
        if key not in values:
            raise UserError(f"{place}{key} is missing")


def _check(row: Row) -> None:
    """Raises UserError naming the key whose value is not possible."""
    for key in ("name", "pipeline"):
        _require(isinstance(getattr(row, key), str) and getattr(row, key), key, getattr(row, key), "text")
    for key in ("scheduler", "call"):
        _require(isinstance(getattr(row, key), dict), key, getattr(row, key), "a mapping")
    _require(_is_number(row.guidance), "guidance", row.guidance, "a number")
    _require(row.dtype in (None, *DTYPES), "dtype", row.dtype, f"one of {', '.join(DTYPES)}")
    if (row.steps is None) == (row.timesteps is None):
        raise UserError("give either steps or timesteps, and not both")
    if row.steps is not None:
        _require(_is_count(row.steps) and row.steps > 0, "steps", row.steps, "a whole number of at least 1")
    else:
        numbers = isinstance(row.timesteps, list) and all(map(_is_count, row.timesteps))
        descending = numbers and row.timesteps == sorted(set(row.timesteps), reverse=True)
        _require(row.timesteps and descending, "timesteps", row.timesteps, "a list of timesteps that descend")
    if row.unet is not None:
        _check_file("unet", row.unet)
    if row.lora is not None:
        _check_file("lora.file", row.lora.file)
        _require(_is_number(row.lora.scale), "lora.scale", row.lora.scale, "a number")
        _require(row.lora.file.endswith(SAFE), "lora.file", row.lora.file, f"a {SAFE} file")


def _require(condition: Any, key: str, value: Any, expected: str) -> None:
    if not condition:
        raise UserError(f"{key} is {value!r} and must be {expected}")


def _check_file(key: str, name: Any) -> None:
    _require(isinstance(name, str) and name, key, name, "a path or a name on the hub")
    if name.endswith(PICKLED):
        raise UserError(f"{key}: opening {name} can run code that is in it; convert it to {SAFE}, or name such a file")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
