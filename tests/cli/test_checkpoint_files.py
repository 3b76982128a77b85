"""Checkpoint files that a user names: only weights and training state are read, and a bad file ends in one line."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.__main__ import main
from tests.pair_sets import refusal
from tests.runs import checkpoint, named, shipped_config, write

DISTILLATION, GENERATION = "diffgan.methods.diffusion2gan.Diffusion2GAN", "diffgan.pairs.generation.PairGeneration"


@pytest.fixture
def run_config(config):
    """A distillation of 24 images without sample grids."""
    config["model"]["init_args"]["images"] = 24
    config["trainer"]["callbacks"] = [c for c in config["trainer"]["callbacks"] if "SampleGrid" not in c["class_path"]]
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def good(run_config, trained, tmp_path) -> Path:
    """A checkpoint of 8 images outside the run's folder, trained once for all tests, and `fit.yaml` beside it."""
    if not (trained / "good.ckpt").exists():
        other = named(run_config, "other")
        other["model"]["init_args"]["images"] = 8
        main(["fit", "-c", write(tmp_path / "other.yaml", other)])
        shutil.copy(tmp_path / "other" / "fit.yaml", trained / "fit.yaml")
        shutil.copy(tmp_path / "other" / "checkpoints" / "last.ckpt", trained / "good.ckpt")
    return trained / "good.ckpt"


@pytest.fixture
def pairs_config(tiny_pipeline, tmp_path) -> str:
    """A configuration file of `predict`: four pairs."""
    (tmp_path / "prompts.txt").write_text("digit 7\n")
    config = shipped_config("glyphs/pairs")
    config["trainer"] |= {"default_root_dir": str(tmp_path / "set"), "accelerator": "cpu"}
    config["trainer"]["callbacks"]["pairs"]["init_args"] |= {"folder": str(tmp_path / "set"), "shard_size": 2}
    config["model"]["init_args"] |= {"teacher": str(tiny_pipeline), "steps": 2}
    config["data"]["init_args"] |= {"prompts": str(tmp_path / "prompts.txt"), "pairs": 4, "batch_size": 2}
    return write(tmp_path / "pairs.yaml", config)


# ---- settings in a checkpoint ----

KINDS = ("optimizer", "model", "optimizer of a named model", "number", "number of a named model")


def with_settings(good: Path, folder: Path, kind: str) -> Path:
    """A copy of a checkpoint with hyper-parameters; some of them name a command that makes the file `owned`."""
    command = {"command": f"touch {folder / 'owned'}"}
    optimizer = {"generator_optimizer": {"class_path": "os.system", "init_args": command}}
    settings = {
        "optimizer": optimizer,
        "model": {"_class_path": "os.system", **command},
        "optimizer of a named model": {"_class_path": DISTILLATION, **optimizer},
        "number": {"images": 16},
        "number of a named model": {"_class_path": DISTILLATION, "images": 16},
        "pair generation": {"_class_path": GENERATION, "steps": 3, "guidance": 1.0},
    }
    content = torch.load(good, weights_only=True) | {"hyper_parameters": settings[kind]}
    torch.save(content, folder / "settings.ckpt")
    return folder / "settings.ckpt"


def recorded_model(record: Path) -> dict:
    return yaml.safe_load(record.read_text())["model"]


@pytest.mark.parametrize("kind", KINDS)
def test_settings_in_a_checkpoint_are_ignored(run_config, good, tmp_path, kind):
    """What runs is what the user's configuration says, to the end of the training."""
    path, file = write(tmp_path / "fit.yaml", run_config), with_settings(good, tmp_path, kind)
    expected = recorded_model(good.with_name("fit.yaml"))
    expected["init_args"]["images"] = 24
    for verb in ("validate", "test", "fit"):
        main([verb, "-c", path, "--ckpt_path", str(file)])
        assert recorded_model(tmp_path / "run" / f"{verb}.yaml") == expected
    assert checkpoint(tmp_path / "run")["images_seen"] == 24
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["optimizer of a named model", "pair generation"])
def test_plan_ignores_settings_in_a_checkpoint(pairs_config, good, tmp_path, capsys, kind):
    main(["pairs", "plan", "-c", pairs_config])
    plan = capsys.readouterr().out
    file = with_settings(good, tmp_path, kind)
    named_file = write(tmp_path / "more.yaml", {"ckpt_path": str(file)})
    main(["pairs", "plan", "-c", pairs_config, "-c", named_file])
    assert capsys.readouterr().out == plan and "2 steps" in plan
    assert not (tmp_path / "owned").exists()


# ---- files that are no checkpoint ----


class Touch:
    """Its pickle makes a file where it is loaded."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch {self.file}",)


BAD = ("truncated", "half", "empty", "text", "pickle", "pickle in an archive")


def bad_file(good: Path, folder: Path, kind: str) -> Path:
    whole, file = good.read_bytes(), folder / "bad.ckpt"
    content = {
        "truncated": whole[:-1000],
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"weights\n",
        "pickle": pickle.dumps(Touch(folder / "owned")),
    }
    if kind == "pickle in an archive":
        torch.save({"state_dict": Touch(folder / "owned"), "pytorch-lightning_version": "2.6.0"}, file)
    else:
        file.write_bytes(content[kind])
    return file


@pytest.mark.parametrize("kind", ["pickle", "pickle in an archive"])
def test_the_pickles_run_code_where_they_are_loaded(good, tmp_path, kind):
    """Else the tests below would show nothing."""
    file = bad_file(good, tmp_path, kind)
    if kind == "pickle":
        pickle.loads(file.read_bytes())
    else:
        torch.load(file, weights_only=False)
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", BAD)
def test_a_broken_checkpoint_ends_in_one_line(run_config, good, tmp_path, capsys, kind):
    path, file = write(tmp_path / "fit.yaml", run_config), bad_file(good, tmp_path, kind)
    for verb in ("fit", "validate", "test"):
        line = refusal(capsys, [verb, "-c", path, "--ckpt_path", str(file), "--weights_only", "false"])
        assert line.startswith(f"diffgan: error: {file}: the checkpoint is broken (")
    assert not (tmp_path / "owned").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_missing_checkpoint_ends_in_one_line(run_config, tmp_path, capsys, verb):
    path, missing = write(tmp_path / "fit.yaml", run_config), tmp_path / "missing.ckpt"
    line = refusal(capsys, [verb, "-c", path, "--ckpt_path", str(missing)])
    assert line == f"diffgan: error: --ckpt_path {missing}: no such file"


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_a_directory_as_checkpoint_ends_in_one_line(run_config, tmp_path, capsys, verb):
    """A sharded checkpoint of PyTorch is a directory whose `.metadata` is unpickled."""
    path, folder = write(tmp_path / "fit.yaml", run_config), tmp_path / "sharded"
    folder.mkdir()
    for name in (".metadata", "meta.pt"):
        (folder / name).write_bytes(pickle.dumps(Touch(tmp_path / "owned")))
    for more in ([], ["-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "1"]):
        line = refusal(capsys, [verb, "-c", path, *more, "--ckpt_path", str(folder)])
        assert line.startswith(f"diffgan: error: --ckpt_path {folder}: is a directory")
    assert not (tmp_path / "owned").exists()


# ---- predict ----


@pytest.mark.parametrize("kind", [*KINDS, "pair generation", *BAD, "missing", "directory"])
def test_predict_refuses_a_checkpoint(pairs_config, good, tmp_path, capsys, kind):
    """Its teacher is named in the configuration; nothing is read and no set is begun."""
    if kind in BAD:
        file = bad_file(good, tmp_path, kind)
    elif kind in ("missing", "directory"):
        file = tmp_path / "missing.ckpt" if kind == "missing" else tmp_path
    else:
        file = with_settings(good, tmp_path, kind)
    line = refusal(capsys, ["predict", "-c", pairs_config, "--ckpt_path", str(file), "--weights_only", "false"])
    assert f"--ckpt_path {file}" in line and "model.init_args.teacher" in line
    assert not (tmp_path / "owned").exists() and not (tmp_path / "set").exists()
