"""Pair sets in tests: a configuration, the files of a folder, and the line with which a command refuses it."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffgan.__main__ import main
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.shard_format import pack, shard_content
from diffgan.storage.atomic import PARTIAL, write_atomic

PAIRS, SHARD, BATCH = 44, 8, 3  # of the command in tests: six shards of three batches, the last one of two


def predict_words(config_file: Path, folder: Path, teacher: Path, prompts: Path) -> list[str]:
    """The words after `diffgan` that make a small set in `folder`; their configuration is written to `config_file`."""
    config = yaml.safe_load(Path("configs/glyphs/pairs.yaml").read_text())
    config.pop("recipe", None)  # the values that it shares are given below
    config["trainer"] |= {"default_root_dir": str(folder), "accelerator": "cpu"}
    writer_settings(config).update(folder=str(folder), shard_size=SHARD)
    config["model"]["init_args"] |= {"teacher": str(teacher), "steps": 2, "guidance": 3.0}
    config["data"]["init_args"] |= {"prompts": str(prompts), "pairs": PAIRS, "batch_size": BATCH, "seed_base": 10}
    config_file.write_text(yaml.safe_dump(config))
    return ["predict", "-c", str(config_file)]


def writer_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `PairWriter` in a configuration, whose callbacks are a list or have names."""
    callbacks = config["trainer"]["callbacks"]
    callbacks = callbacks.values() if isinstance(callbacks, dict) else callbacks
    (settings,) = [c["init_args"] for c in callbacks if c["class_path"] == "callbacks.pair_writer.PairWriter"]
    return settings


def write_shard(folder: Path, manifest: Manifest, shard: int, pairs: PairBatch) -> None:
    """Write one shard of a set."""
    file = manifest.file(folder, shard)
    tensors = pack(pairs, manifest.store_noise, str(file))
    write_atomic(file, shard_content(manifest, shard, tensors, truncated=0))


def contents(folder: Path) -> dict[str, bytes]:
    """The content of every file of a set, those in subfolders too, without the saved configuration of the run."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.suffix != ".yaml")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def partial_shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("parts/*.safetensors"))


def claims(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("claims/*") if file.suffix != PARTIAL)


def shards(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors"))


def refusal(capsys, words: list[str]) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("diffgan: error:")]
    return line


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def die_at_write(words: list[str], write: int) -> None:
    """Run the command and kill -9 this process between its `write`-th file's bytes and its rename."""
    fsync, calls = os.fsync, iter(range(write))

    def fatal(descriptor):
        fsync(descriptor)
        if next(calls) == write - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fatal
    main(words)
