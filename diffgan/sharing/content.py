"""What a folder holds that can be shared: which files are uploaded, and what its records say."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from diffgan.errors import UserError, reason
from diffgan.evaluation.rows import DTYPES
from diffgan.pairs.manifest import MANIFEST, Manifest
from diffgan.perceptual.weights import HEAD, KIND, load_weights
from diffgan.storage.open import open_store
from diffgan.teachers.pipeline_files import ADAPTERS, without_path
from diffgan.teachers.registry import checked_size, public_name

EXPORT, INDEX, SAMPLES = "diffgan.json", "model_index.json", "samples.png"
COMPONENT_FILES = ("*.json", "*.safetensors", "*.txt")
# Parts of an export's record, and what the card needs of them.
PARTS: dict[str, dict[str, Any]] = {
    "teacher": {"name": str},
    "method": {"name": str},
    "pairs": {"pairs": int, "steps": int, "guidance": (int, float)},
    "evaluation": {"protocol": str, "protocol_digest": str, "metrics": dict},
    "difference_to_float32": {"largest": float},
}
STUDENT, WEIGHTS, PAIRS = "student", "weights", "pairs"


@dataclass(frozen=True)
class Content:
    """What is uploaded.

    kind: "student", "weights" or "pairs".  files: by their name there: a file, or the bytes that replace it.  record:
    what the card is written from.
    """

    kind: str
    files: dict[str, Path | bytes]
    record: dict[str, Any]

    @property
    def repository_type(self) -> str:
        """The hub's: "dataset" for pairs, else "model"."""
        return "dataset" if self.kind == PAIRS else "model"

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {
            name: len(file) if isinstance(file, bytes) else file.stat().st_size for name, file in self.files.items()
        }


def read_content(path: Path) -> Content:
    """The content of an export, of a complete pair set, or of a file (or folder) of perceptual weights.

    Files beside those that diffgan wrote are not part of it.

    Raises:
        UserError: it is none of the three, or a record is damaged or a file missing.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / EXPORT).is_file():
        return _student(path)
    if (path / MANIFEST).is_file():
        return _pairs(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    headers = {file: _weights_header(file) for file in files}
    weights = {file: header for file, header in headers.items() if header is not None}
    if len(weights) != 1:
        found = f"{len(weights)} files of" if weights else "no export (diffgan.json), pair set (manifest.json) or"
        raise UserError(f"{path}: holds {found} perceptual weights; name one of them")
    ((file, header),) = weights.items()
    load_weights(file)  # which checks all of it
    return Content(WEIGHTS, {file.name: file}, header | {"file": file.name})


def _student(folder: Path) -> Content:
    """An export: the components that its index names."""
    if (folder / ADAPTERS).is_file() and not (folder / INDEX).is_file():
        raise UserError(f"{folder}: holds adapters alone, push takes whole pipelines; export again without --lora")
    record, index = (_read_json(folder / name) for name in (EXPORT, INDEX))
    _check_record(folder / EXPORT, record)
    files: dict[str, Path | bytes] = {name: folder / name for name in (EXPORT, INDEX)}
    components = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    for component in components:
        found = sorted(file for pattern in COMPONENT_FILES for file in (folder / component).glob(pattern))
        if not found:
            raise UserError(f"{folder / component}: holds no files, but {INDEX} names it; export again")
        files |= {f"{component}/{file.name}": file for file in found}
        if (config := folder / component / "config.json").is_file():
            files[f"{component}/config.json"] = _config(config)
    if (folder / SAMPLES).is_file():
        files[SAMPLES] = folder / SAMPLES
    return Content(STUDENT, files, record | {"class": index.get("_class_name"), "samples": SAMPLES in files})


def _pairs(folder: Path) -> Content:
    """A complete pair set; a teacher that is a directory is named by its last part."""
    store = open_store(folder)
    manifest = Manifest.read(store)
    manifest.require_complete(store)
    public = replace(manifest, teacher=public_name(manifest.teacher))
    shards = {manifest.name(shard): manifest.file(folder, shard) for shard in range(manifest.shards)}
    return Content(PAIRS, {MANIFEST: public.content(), **shards}, json.loads(public.content()))


def _check_record(file: Path, record: dict[str, Any]) -> None:
    """Raises: UserError if a part of an export's record is not what `export` writes."""
    for name, entries in PARTS.items():
        part = record.get(name)
        if part is not None and not (
            isinstance(part, dict) and all(_is_a(kind, part, e) for e, kind in entries.items())
        ):
            raise UserError(f"{file}: {name} is damaged; export again")
    if (dtype := record.get("dtype", "float32")) not in DTYPES:
        raise UserError(f"{file}: dtype is {dtype!r} and must be one of {', '.join(DTYPES)}; export again")
    try:
        checked_size(record.get("size"))
    except UserError as error:
        raise UserError(f"{file}: {error}; export again") from error


def _is_a(kind: Any, part: dict[str, Any], entry: str) -> bool:
    return isinstance(part.get(entry), kind)


def _config(file: Path) -> bytes:
    _read_json(file)
    return without_path(file.read_bytes())


def _read_json(file: Path) -> dict[str, Any]:
    """Raises: UserError if it is no JSON object."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({reason(error)}); export again") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: is no JSON object; export again")
    return values


def _weights_header(file: Path) -> dict[str, Any] | None:
    """The header of a file of perceptual weights; None if it is none."""
    try:
        with safe_open(file, "pt") as tensors:
            header, names = tensors.metadata() or {}, list(tensors.keys())
    except (OSError, SafetensorError):
        return None
    return header | {"heads": any(name.startswith(HEAD) for name in names)} if header.get("kind") == KIND else None
