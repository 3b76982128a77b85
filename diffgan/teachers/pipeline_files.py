"""Pipeline directories that every supported version of diffusers and transformers opens."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

WEIGHTS = "model.safetensors"
PREFIX = "text_model."  # of a CLIPTextModel's weights on the hub; transformers 5.6 and later write them without


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline as a directory.

    Beside what `save_pretrained` writes: the names of a text encoder's weights are those of the hub (versions of
    transformers below 5.6 find no others and would draw random weights instead), and a tokenizer also has `vocab.json`
    and `merges.txt` (versions below 5 read only these).

    Args:
        pipeline: its text encoders' dtype is written into their configuration; transformers loads them in it.
        folder: the directory; made if it does not exist.
    """
    pipeline.save_pretrained(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, CLIPTextModel):
            _restore_names(folder / name / WEIGHTS)
        if isinstance(part, CLIPTokenizer):
            _write_vocabulary(part, folder / name)


def _restore_names(file: Path) -> None:
    """Put the prefix of the hub before every name that lacks it."""
    weights = load_file(file)
    renamed = {PREFIX + name.removeprefix(PREFIX): weight.clone() for name, weight in weights.items()}
    save_file(renamed, file, {"format": "pt"})


def _write_vocabulary(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The two files of a byte-pair encoding: tokens with their numbers, and merges in their order."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
