"""Generators whose images are not finite: no file is written of them, and no metric is computed."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.__main__ import main
from tests.photographs import protocol_files
from tests.pipelines import miniature, random_inception, saved
from tests.runs import refused, write


def broken(component, side=8):
    """How to build the miniature with NaN as the last weight of a component."""

    def build():
        pipeline = miniature()
        pipeline.unet.register_to_config(sample_size=side)
        list(getattr(pipeline, component).parameters())[-1].data[0] = float("nan")
        return pipeline

    return build


def only_line(capsys, *words):
    """The single error line of a refused command; progress bars of a slow machine aside."""
    capsys.readouterr()
    lines = refused(capsys, *words).replace("\r", "\n").splitlines()
    (line,) = (line for line in lines if line.startswith("diffgan: "))
    return line


@pytest.fixture(params=["vae", "unet"])
def component(request):
    return request.param


@pytest.fixture
def protocol(tmp_path):
    """The file of a COCO protocol of three captions and four images."""
    return protocol_files(tmp_path, {"tiny": 3})["tiny"]


def test_sample_writes_nothing(component, tmp_path, capsys):
    pipeline = saved(broken(component), tmp_path / "broken")
    output = tmp_path / "out"
    words = ["sample", "digit 7", "digit 8", "--student", pipeline, "--output", output, "--seed", "5"]
    line = only_line(capsys, *words)
    assert "'digit 7' (seed 5)" in line and "not finite" in line
    assert not output.exists()


def test_evaluation_on_glyphs_writes_nothing(component, tmp_path, capsys):
    pipeline = saved(broken(component, side=16), tmp_path / "broken")
    line = only_line(capsys, "evaluate", pipeline, tmp_path / "out.json", "--steps", "1")
    assert "seed 3000000000)" in line and "not finite" in line
    assert not (tmp_path / "out.json").exists()


def test_evaluation_on_photographs_writes_nothing(component, protocol, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "torch" / "hub" / "checkpoints").mkdir(parents=True)
    random_inception(tmp_path / "torch" / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth")
    pipeline = saved(broken(component), tmp_path / "broken")
    words = ["evaluate", pipeline, tmp_path / "out.json", "--steps", "1", "--protocol", protocol]
    line = only_line(capsys, *words)
    assert "'one dog' (seed 3000000000)" in line and "not finite" in line
    assert not (tmp_path / "out.json").exists()


@pytest.fixture
def damaged(config, tmp_path):
    """The configuration's file and the run's folder, with NaN written into the averaged student after the fit."""
    config["model"]["init_args"]["images"] = 8
    path, last = write(tmp_path / "fit.yaml", config), tmp_path / "run" / "checkpoints" / "last.ckpt"
    main(["fit", "-c", path])
    content = torch.load(last, weights_only=True)
    content["state_dict"]["generator_ema.unet.conv_out.bias"][0] = float("nan")
    torch.save(content, last)
    return path, tmp_path / "run"


def test_test_of_a_run_writes_no_metrics(damaged, protocol, capsys):
    path, run = damaged
    config, before = yaml.safe_load(Path(path).read_text()), (run / "metrics.json").read_bytes()
    extractor = {"class_path": "diffgan.evaluation.features.efficientnet.EfficientNetFeatures"}
    evaluation = {"protocol": protocol, "extractor": extractor}
    config["trainer"]["callbacks"].append({"class_path": "callbacks.coco_fid.COCOFID", "init_args": evaluation})
    line = refused(capsys, "test", "-c", write(run.parent / "test.yaml", config)).splitlines()[-1]
    assert "'one dog' (seed 3000000000)" in line and "not finite" in line
    assert (run / "metrics.json").read_bytes() == before


def test_grid_of_a_run_is_saved_nevertheless(damaged):
    """It shows the images as they are, and does not end the run."""
    path, run = damaged
    main(["test", "-c", path])
    assert json.loads((run / "metrics.json").read_text())["stage"] == "test"
    assert list((run / "samples").glob("*.png"))
