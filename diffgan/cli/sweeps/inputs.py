"""The files that a run of a sweep depends on, by digest: a path may hold something else later."""

import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from diffgan.errors import UserError
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import glyph_protocol
from diffgan.evaluation.samplers import pipeline_digest
from diffgan.pairs.manifest import Manifest
from diffgan.perceptual.pixels import LPIPS_PACKAGE
from diffgan.perceptual.weights import weights_file
from diffgan.storage.digests import digest
from diffgan.storage.open import open_store

WEIGHTS = ("LatentLPIPS", "ELatentLPIPS", "PixelLPIPS", "Calibration")  # whose argument `weights` is a file


def input_digests(config: dict[str, Any]) -> dict[str, str]:
    """Digests of what a run's configuration names, as far as it is on this machine.

    Returns:
        "teacher": of its weights; "pairs": of what the manifest of the pair set says; "weights of the perceptual
        distance". What is on the hub, in an object store, or not there has none.
    """
    model, data = (config[part].get("init_args") or {} for part in ("model", "data"))
    digests = {
        "teacher": _digest_of_pipeline(model.get("teacher")),
        "pairs": _digest_of_pairs(data.get("folder")),
        "weights of the perceptual distance": _digest_of_files(tuple(weight_files(config["model"]))),
    }
    return {name: value for name, value in digests.items() if value is not None}


def weight_files(value: Any) -> Iterator[Path]:
    """The weight files of every perceptual distance in a configuration."""
    if isinstance(value, dict):
        arguments = value.get("init_args")
        if str(value.get("class_path")).rpartition(".")[2] in WEIGHTS and arguments.get("weights") != LPIPS_PACKAGE:
            yield weights_file(arguments["weights"])
        for below in value.values():
            yield from weight_files(below)


@cache
def protocol_digest(protocol: str) -> str | None:
    """The digest of a protocol, which is a name or a file; None where its captions or real images are not there."""
    try:
        if protocol.endswith((".yaml", ".yml")):
            return read_protocol(Path(protocol)).digest
        return glyph_protocol(protocol).digest
    except UserError:
        return None


def protocols_of(config: dict[str, Any]) -> list[str]:
    """The protocols of a run's evaluation."""
    callbacks = config["trainer"].get("callbacks") or {}
    values = callbacks.values() if isinstance(callbacks, dict) else callbacks
    return [value["init_args"]["protocol"] for value in values if "protocol" in value.get("init_args", {})]


@cache
def _digest_of_pipeline(path: str | None) -> str | None:
    return None if path is None else pipeline_digest(path)


def _digest_of_pairs(folder: str | None) -> str | None:
    if not folder or "://" in folder or not (Path(folder) / "manifest.json").is_file():
        return None
    identity = Manifest.read(open_store(folder)).identity()
    return hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


@cache
def _digest_of_files(files: tuple[Path, ...]) -> str | None:
    if not files or not all(file.is_file() for file in files):
        return None
    return " ".join(map(digest, files))
