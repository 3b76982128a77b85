"""`float32_matmul_precision`: set before a verb computes, and stated in its records."""

import json

import pytest
import torch
import yaml

from diffgan.__main__ import main
from tests.runs import refused, write


@pytest.fixture(autouse=True)
def restored():
    yield
    torch.set_float32_matmul_precision("highest")


def test_it_is_set_and_recorded_and_does_not_stay(adversarial_fit, tmp_path):
    """R1 computes without TF32 in between, which torch refuses if only one of its two settings is changed."""
    main(["fit", "-c", adversarial_fit, "--float32_matmul_precision", "high"])
    assert torch.get_float32_matmul_precision() == "high"
    record = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert record["float32_matmul_precision"] == "high"
    assert yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())["float32_matmul_precision"] == "high"
    main(["fit", "-c", adversarial_fit, "--model.init_args.images", "24"])  # resumes with another one
    assert torch.get_float32_matmul_precision() == "highest"


def test_pairs_are_not_made_with_it_and_other_words_are_refused(command, tmp_path, capsys):
    words = command(tmp_path / "set", "--float32_matmul_precision", "high")
    assert "predict: float32_matmul_precision high is not supported" in refused(capsys, *words)
    assert not (tmp_path / "set").exists()
    assert "float32_matmul_precision" in refused(capsys, *words[:-1], "low")


@pytest.fixture
def adversarial_fit(config, tmp_path):
    """A fit of two batches with R1 at each."""
    arguments = config["model"]["init_args"]
    arguments["images"] = 16
    arguments["adversarial"] = {
        "class_path": "diffgan.methods.adversarial.AdversarialTraining",
        "init_args": {
            "discriminator": {"class_path": "diffgan.nets.discriminator.MultiScaleDiscriminator"},
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}},
            "r1_every": 1,
        },
    }
    config["trainer"]["val_check_interval"] = 1
    return write(tmp_path / "fit.yaml", config)
