"""When a run is evaluated, by which protocol, and what its record says of it."""

import json
from pathlib import Path

import pytest
import torch

from diffgan.__main__ import main
from diffgan.evaluation.protocols.coco import read_protocol
from tests.photographs import protocol_files
from tests.runs import curves, refused, write
from tests.teacher_images import write_teacher_images

EXTRACTOR = {"class_path": "diffgan.evaluation.features.efficientnet.EfficientNetFeatures"}
COCO = "callbacks.coco_fid.COCOFID"


@pytest.fixture
def protocols(tmp_path):
    """Files of two protocols, by name: `short` has 2 images, `complete` 3, of the same captions and real images."""
    return protocol_files(tmp_path, {"short": 2, "complete": 3})


def evaluation(file, **arguments):
    return {"class_path": COCO, "init_args": {"protocol": file, "extractor": EXTRACTOR, **arguments}}


@pytest.fixture
def followed(config, protocols):
    """48 images in batches of 8, a validation after each, followed by the short protocol every 20 images."""
    config["trainer"]["val_check_interval"] = 1
    (report,) = (one for one in config["trainer"]["callbacks"] if "RunReport" in one["class_path"])
    config["trainer"]["callbacks"] = [
        evaluation(protocols["complete"]),
        evaluation(protocols["short"], every_images=20, fit_only=True),
        report,
    ]
    return config


def evaluated_at(run):
    """{images seen: images evaluated} of the logged evaluations of a fit."""
    logged = {step: values for (name, step), values in curves(run).items() if name == "evaluation/images"}
    return {step: value for step, (value,) in logged.items()}


def record(run):
    return json.loads((run / "metrics.json").read_text())


def test_fit_is_followed_by_one_protocol_and_tested_by_another(followed, tmp_path):
    followed["trainer"]["callbacks"].append(
        {"class_path": "callbacks.image_checkpoint.ImageCheckpoint", "init_args": {"every_images": 8}}
    )
    path, run = write(tmp_path / "fit.yaml", followed), tmp_path / "run"
    main(["fit", "-c", path])
    assert evaluated_at(run) == {24: 2, 40: 2}  # the first validations after 20 and 40
    assert "protocol" not in record(run)  # that of 48 images evaluated nothing
    assert not [name for name in record(run)["metrics"] if name.startswith("evaluation/")]
    for verb in ("test", "validate"):
        main([verb, "-c", path])
        assert record(run)["protocol"] == "complete" and record(run)["metrics"]["evaluation/images"] == 3


def test_record_of_a_fit_names_the_protocol_that_measured(followed, tmp_path):
    followed["model"]["init_args"]["images"] = 40
    main(["fit", "-c", write(tmp_path / "fit.yaml", followed)])
    assert record(tmp_path / "run")["protocol"] == "short"
    assert record(tmp_path / "run")["metrics"]["evaluation/images"] == 2


def test_evaluation_that_an_interruption_cost_is_made_up_for(followed, tmp_path):
    """The first run ends with the checkpoint of 40 images, before the validation; the second one begins there."""
    followed["trainer"]["callbacks"].append(
        {"class_path": "callbacks.image_checkpoint.ImageCheckpoint", "init_args": {"every_images": 8}}
    )
    followed["trainer"]["limit_val_batches"] = 0
    followed["model"]["init_args"]["images"] = 40
    path = write(tmp_path / "fit.yaml", followed)
    main(["fit", "-c", path])
    followed["trainer"]["limit_val_batches"] = 1
    followed["model"]["init_args"]["images"] = 64
    write(tmp_path / "fit.yaml", followed)
    main(["fit", "-c", path])
    assert evaluated_at(tmp_path / "run") == {48: 2, 64: 2}  # of 40, at the next validation; of 60


def test_evaluation_that_never_happens_is_refused(followed, tmp_path, capsys):
    followed["trainer"]["callbacks"][1]["init_args"]["every_images"] = None
    error = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", followed))
    assert "COCOFID: fit_only requires every_images" in error


def test_a_test_records_what_made_the_teacher_s_images(followed, protocols, tmp_path):
    protocol = read_protocol(Path(protocols["complete"]))
    folder = write_teacher_images(
        tmp_path / "teacher", protocol.name, protocol.digest, torch.zeros(3, 3, 24, 24).byte()
    )
    made = {"pipeline": {"name": "glyphs", "digest": "0" * 32}, "config": {"steps": 50, "guidance": 3.0}}
    index = folder / "images.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | made))
    followed["trainer"]["callbacks"][0]["init_args"]["teacher_images"] = str(folder)
    followed["trainer"]["callbacks"].append(
        {"class_path": "callbacks.image_checkpoint.ImageCheckpoint", "init_args": {"every_images": 8}}
    )
    path = write(tmp_path / "fit.yaml", followed)
    main(["fit", "-c", path])
    main(["test", "-c", path])
    assert record(tmp_path / "run")["teacher_images"] == made
