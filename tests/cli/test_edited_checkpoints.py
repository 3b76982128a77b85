"""Checkpoints whose content was edited: `fit`, `validate` and `export` refuse them in one line and write nothing."""

import shutil
from pathlib import Path

import pytest
import torch

from diffgan.__main__ import main
from tests.pair_sets import refusal
from tests.runs import distillation, write


@pytest.fixture(scope="module")
def trained(tiny_pipeline, pairs, tmp_path_factory) -> Path:
    """A run of 8 images: its configuration and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    config = distillation(tiny_pipeline, pairs, folder)
    config["model"]["init_args"]["images"] = 8
    config["trainer"]["callbacks"] = [c for c in config["trainer"]["callbacks"] if "SampleGrid" not in c["class_path"]]
    main(["fit", "-c", write(folder / "fit.yaml", config)])
    config["model"]["init_args"]["images"] = 16
    write(folder / "fit.yaml", config)
    return folder


def first_weight(content):
    return next(name for name in content["state_dict"] if name.startswith("generator.") and name.endswith("weight"))


def drop_weight(content):
    del content["state_dict"][first_weight(content)]


def drop_average(content):
    del content["state_dict"][first_weight(content).replace("generator.", "generator_ema.")]


def cut_weight(content):
    name = first_weight(content)
    content["state_dict"][name] = content["state_dict"][name][:1]


def weight_as_text(content):
    content["state_dict"][first_weight(content)] = "text"


def cut_optimizer(content):
    name = first_weight(content)
    content["optimizer_states"][0]["state"][name]["exp_avg"] = torch.zeros(3, 7)


def drop_optimizer(content):
    del content["optimizer_states"][0]["param_groups"]


def unknown_optimizer_key(content):
    content["optimizer_states"][0]["param_groups"][0]["params"] = ["another"]


def drop_loops(content):
    content["loops"]["fit_loop"] = {}


def setting(key, value):
    def change(content):
        content[key] = value

    return change


def drop(key):
    return lambda content: content.pop(key)


EDITS = [
    (drop("state_dict"), "it has no state_dict"),
    (drop("pytorch-lightning_version"), "it has no pytorch-lightning_version"),
    (drop("optimizer_states"), "optimizer"),
    (drop("images_seen"), "images_seen"),
    (drop_weight, "has shape none there"),
    (cut_weight, "an optimizer's exp_avg of"),
    (weight_as_text, "its state_dict holds no tensor"),
    (cut_optimizer, "has shape (3, 7), its weight"),
    (drop_optimizer, "lacks state or param_groups"),
    (unknown_optimizer_key, "does not fit this training"),
    (drop_loops, "its loops have no fit_loop with a state_dict"),
    (setting("images_seen", "many"), "its images_seen is 'many' and must be an integer of at least 0"),
    (setting("images_seen", -8), "its images_seen is -8 and must be an integer of at least 0"),
    (setting("epoch", None), "its epoch is None"),
    (setting("state_dict", [1]), "its state_dict is [1] and must be a dictionary"),
    (setting("optimizer_states", {}), "its optimizer_states is {} and must be a list"),
    (setting("callbacks", []), "its callbacks is [] and must be a dictionary"),
    (setting("teacher_digest", 3), "its teacher_digest is 3 and must be a text"),
    (setting("pytorch-lightning_version", "new"), "does not fit this training"),
    (setting("lr_schedulers", "a"), "its lr_schedulers is 'a' and must be a list"),
]


def edited(trained, folder, edit) -> Path:
    content = torch.load(trained / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    edit(content)
    torch.save(content, folder / "edited.ckpt")
    return folder / "edited.ckpt"


@pytest.mark.parametrize(
    "edit, message", EDITS, ids=[f"{number} {message}" for number, (_, message) in enumerate(EDITS)]
)
def test_fit_refuses_it_by_name(edit, message, trained, tmp_path, capsys):
    file, folder = edited(trained, tmp_path, edit), tmp_path / "run"
    words = ["fit", "-c", str(trained / "fit.yaml"), f"--trainer.logger.init_args.save_dir={tmp_path}"]
    line = refusal(capsys, [*words, "--ckpt_path", str(file)])
    assert message in line
    assert not (folder / "checkpoints").exists()


@pytest.mark.parametrize("edit", [drop("state_dict"), drop("teacher_digest"), drop_average, weight_as_text, cut_weight])
def test_export_refuses_it(edit, trained, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    edited(trained, run / "checkpoints", edit).replace(run / "checkpoints" / "last.ckpt")
    line = refusal(capsys, ["export", str(run), str(tmp_path / "student")])
    assert f"{run}/checkpoints/last.ckpt: " in line and not (tmp_path / "student").exists()
