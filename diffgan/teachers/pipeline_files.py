"""Pipeline directories that every supported version of diffusers and transformers opens."""

import json
from pathlib import Path

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

RECORD = "diffgan.json"  # marks a folder as an exported student: its run, its checkpoint, its size
ADAPTERS = "pytorch_lora_weights.safetensors"  # what `export --lora` writes in place of a pipeline
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PREFIX = "text_model."  # in the names of a CLIPTextModel's weights on the hub; transformers 5.6 and later omit it


def save_pipeline(pipeline: DiffusionPipeline, folder: Path) -> None:
    """Write a pipeline as a directory.

    Three things differ from `save_pretrained`. The names of a text encoder's weights are those of the hub: versions of
    transformers below 5.6 find no others and would use random weights instead. A tokenizer also has `vocab.json` and
    `merges.txt`: versions below 5 read only these. The configuration of a text encoder states float32, whatever dtype
    its weights are stored in: transformers 5 loads it in the stated one where the caller names none, as diffusers loads
    the other networks in float32 then.

    Args:
        pipeline: its networks may be in any dtype.
        folder: the directory; created if it does not exist.
    """
    pipeline.save_pretrained(folder)
    for name, component in pipeline.components.items():
        if isinstance(component, PreTrainedModel):
            _state_float32(folder / name / CONFIG)
        if isinstance(component, CLIPTextModel):
            _restore_names(folder / name / WEIGHTS)
        if isinstance(component, CLIPTokenizer):
            _write_vocabulary(component, folder / name)


def without_path(config: bytes) -> bytes:
    """A component's configuration without the place that it was loaded from, which is of the machine that did it."""
    values = json.loads(config)
    values.pop("_name_or_path", None)
    return (json.dumps(values, indent=2) + "\n").encode()


def _state_float32(file: Path) -> None:
    """Name float32 in a text encoder's configuration as the dtype to load it in."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for key in ("dtype", "torch_dtype"):  # transformers 5, and before
        if key in config:
            config[key] = "float32"
    file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


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
