"""Pipeline directories that every supported version of diffusers and transformers opens."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

RECORD = "diffgan.json"  # marks a folder as an exported student: its run, its checkpoint, its size
WEIGHTS = "model.safetensors"
PREFIX = "text_model."  # in the names of a CLIPTextModel's weights on the hub; transformers 5.6 and later omit it


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline as a directory.

    Two things differ from `save_pretrained`. The names of a text encoder's weights are those of the hub: versions of
    transformers below 5.6 find no others and would use random weights instead. A tokenizer also has `vocab.json` and
    `merges.txt`: versions below 5 read only these.

    Args:
        pipeline: its text encoders' dtype is written into their configuration; transformers loads them in it.
        folder: the directory; created if it does not exist.
    """
    pipeline.save_pretrained(folder)
    for name, component in pipeline.components.items():
        if isinstance(component, CLIPTextModel):
            _restore_names(folder / name / WEIGHTS)
        if isinstance(component, CLIPTokenizer):
            _write_vocabulary(component, folder / name)


def _restore_names(file: Path) -> None:
    """Add the hub's prefix to every name that lacks it."""
    weights = load_file(file)
    renamed = {PREFIX + name.removeprefix(PREFIX): weight.clone() for name, weight in weights.items()}
    save_file(renamed, file, {"format": "pt"})


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write the two files of a byte-pair encoding: tokens with their numbers, and merges in order."""
    encoding = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(encoding["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in encoding["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
