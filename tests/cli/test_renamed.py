"""Files of version 0.1 (tests/data/v0.1) under the names of today."""

import copy
import importlib
import json
import lzma
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.__main__ import main
from diffgan.cli import renamed
from diffgan.cli.verbs import VERBS
from diffgan.pairs.pair_set import PairSet
from tests.data.final_weights import final_weights
from tests.runs import refused

OLD = Path(__file__).parents[1] / "data" / "v0.1"


@pytest.fixture(autouse=True)
def notices_again():
    """A notice is printed once in a process: each test counts its own."""
    renamed._notice.cache_clear()


@pytest.fixture
def old(tmp_path, monkeypatch) -> Path:
    """The files in a folder of their own, which is the working folder: their paths are relative."""
    folder = tmp_path / "old"
    shutil.copytree(OLD, folder)
    compressed = folder / "run" / "distill" / "checkpoints" / "last.ckpt.xz"
    compressed.with_suffix("").write_bytes(lzma.decompress(compressed.read_bytes()))
    monkeypatch.chdir(folder)
    return folder


def old_weights() -> dict:
    return json.loads((OLD / "final.json").read_text())


def assert_same_weights(path: Path) -> None:
    """The weights of a checkpoint are nearly those of version 0.1: version 0.3 changed adversarial training."""
    expected, found = old_weights(), final_weights(path)
    assert found["norms"] == pytest.approx(expected["norms"], rel=1e-3)


def test_an_old_configuration_trains_nearly_the_same_weights(old, capsys):
    shutil.rmtree(old / "run")
    main(["fit", "-c", "distill.yaml"])
    assert_same_weights(old / "run" / "distill" / "checkpoints" / "last.ckpt")
    notices = [line for line in capsys.readouterr().err.splitlines() if "version 0.1" in line]
    assert len(notices) == 1 and "version 0.5 is the last" in notices[0]


def test_an_old_run_resumes_where_it_would_have_got_to(old, capsys):
    last = old / "run" / "distill" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["images_seen"] == 24
    main(["fit", "-c", "distill.yaml"])
    assert "fit from run/distill/checkpoints/last.ckpt" in capsys.readouterr().err
    assert torch.load(last, weights_only=True)["images_seen"] == 48
    assert_same_weights(last)
    assert "adversarial" in yaml.safe_load((old / "run" / "distill" / "fit.yaml").read_text())["model"]["init_args"]


def test_an_old_run_under_its_translated_configuration_resumes(old, capsys):
    config = renamed.translate_config(yaml.safe_load((old / "distill.yaml").read_text()))
    (old / "new.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", "new.yaml"])
    assert_same_weights(old / "run" / "distill" / "checkpoints" / "last.ckpt")


def test_another_experiment_in_an_old_run_s_folder_is_refused(old, capsys):
    option = "--model.init_args.adversary.init_args.weight"
    error = refused(capsys, "fit", "-c", "distill.yaml", option, "0.25")
    assert "model.init_args.adversarial.init_args.weight was 0.5 and is 0.25 now" in error


def test_an_old_pair_set_opens_and_is_right(old, capsys):
    assert len(PairSet("pairs")) == 32
    main(["pairs", "verify", "pairs", "--sample", "8"])
    main(["predict", "-c", "pairs.yaml"])  # complete: nothing to do
    assert "2 shards" in capsys.readouterr().out


def test_a_table_of_old_records(capsys):
    main(["tables", str(OLD / "metrics.json")])
    shown = capsys.readouterr()
    record = json.loads((OLD / "metrics.json").read_text())
    assert f"{record['metrics']['judge/fd_efficientnet']:.1f}" in shown.out


def test_records_are_translated_once_and_stay_as_they_are():
    record = json.loads((OLD / "metrics.json").read_text()) | {"stage": "judge"}
    before = copy.deepcopy(record)
    translated = renamed.translate_metrics(record)
    assert record == before
    assert translated["stage"] == "evaluate"
    values = {name.removeprefix("judge/"): value for name, value in record["metrics"].items()}
    assert {name.removeprefix("evaluation/"): value for name, value in translated["metrics"].items()} == values
    assert not [name for name in translated["metrics"] if name.startswith("judge/")]
    assert renamed.translate_metrics(translated) == translated


def test_configurations_of_today_are_left_alone(capsys):
    today = renamed.translate_config(yaml.safe_load((OLD / "distill.yaml").read_text()))
    capsys.readouterr()
    renamed._notice.cache_clear()
    assert renamed.translate_config(today) == today
    assert capsys.readouterr().err == ""


def test_every_new_path_is_a_class():
    for path in renamed.CLASSES.values():
        module, _, name = path.rpartition(".")
        assert isinstance(getattr(importlib.import_module(module), name), type)


def test_an_override_of_the_discriminator_alone_is_translated():
    override = {"model": {"init_args": {"adversary": {"init_args": {"weight": 1.0}}}}}
    expected = {"model": {"init_args": {"adversarial": {"init_args": {"weight": 1.0}}}}}
    assert renamed.translate_config(override) == expected
    assert renamed.translate_words(["--model.adversary.weight=1"]) == ["--model.adversarial.weight=1"]
    assert renamed.translate_words(["--model.init_args.adversary", "diffgan.adversary.Adversary"]) == [
        "--model.init_args.adversarial",
        "diffgan.methods.adversarial.AdversarialTraining",
    ]


@pytest.mark.parametrize(("verb", "now"), renamed.VERBS.items())
def test_old_verbs_work_with_a_notice(verb, now, capsys):
    assert now in VERBS and verb not in VERBS
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    shown = capsys.readouterr()
    assert stop.value.code == 0 and f"usage: diffgan {now}" in shown.out
    assert shown.err.count("\n") == 1 and f"the verb {verb} is called {now} now" in shown.err
