"""The table targets of the Makefile for SD1.5 and SDXL, with tiny random pipelines from pairs to tables."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.evaluation.features.inception import InceptionFeatures
from tests.bapps import ANSWERS, write_bapps
from tests.cli.test_recipes import SMALLER, lay_out
from tests.runs import write

ROOT = Path(__file__).parents[3]
RECIPES = ("sd15", "sdxl")


@pytest.fixture(params=RECIPES)
def scale(request, tmp_path, monkeypatch):
    """A checkout in an empty folder, with tiny things in the places that the recipe names."""
    recipe = request.param
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    ignored = shutil.ignore_patterns("results", "prompts.txt")
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=ignored)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    lay_out(recipe, tmp_path)
    cpu = {"trainer": {"accelerator": "cpu", "devices": 1, "strategy": "auto"}}
    write(tmp_path / "mine.yaml", {"recipe": {"teacher": "tiny"}, **cpu})
    write(tmp_path / "pairs.yaml", nested(SMALLER["pairs"]))
    run = nested({key: value for key, value in SMALLER["distill"].items() if "starts_at" not in key})
    run["trainer"] |= {"precision": "32-true", "enable_model_summary": False}
    run["trainer"]["callbacks"] |= {"health": None, "samples": None}
    run["model"]["init_args"]["accumulate"] = 1
    write(tmp_path / "runs.yaml", run)
    return recipe


def nested(settings):
    """{"model.images": 64} -> {"model": {"init_args": {"images": 64}}}"""
    config = {}
    for key, value in settings.items():
        below = config
        *parents, last = key.replace("model.", "model.init_args.", 1).replace("data.", "data.init_args.", 1).split(".")
        for name in parents:
            below = below.setdefault(name, {})
        below[last] = value
    return config


def make(target, scale, *rows, cwd=None, **variables):
    """Run a target; returns what it prints."""
    options = " ".join(["-c mine.yaml --fit runs.yaml --predict pairs.yaml", *(f"--row {row}" for row in rows)])
    variables = {"SCALE": scale, "RUN": f"{sys.executable} -m diffgan", "INSTALLED": "", "SWEEP": options, **variables}
    words = ["make", target, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900, check=False, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def records(scale, table):
    files = sorted(Path("runs", "tables", scale, table, "records").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


@pytest.mark.parametrize("target", ["figure-reconstruction", "table-speed", "table-bapps"])
def test_an_unknown_scale_runs_nothing(target):
    words = ["make", "--dry-run", "-C", str(ROOT), target, "SCALE=sd14", "INSTALLED="]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (
        done.returncode != 0 and "SCALE=sd14 is none of glyphs, sd15, sdxl" in done.stderr and "-m" not in done.stdout
    )


@pytest.mark.parametrize("target", ["figure-reconstruction", "table-speed"])
def test_a_plan_of_a_target_without_a_sweep_runs_nothing(target):
    out = make(target, "sdxl", PLAN="1", RUN="false", VENV="absent", cwd=ROOT)
    assert "GPU" in out and target in out


def test_a_figure_that_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Makefile").symlink_to(ROOT / "Makefile")
    record = Path("runs/figures/glyphs/reconstruction/metrics.json")
    record.parent.mkdir(parents=True)
    record.write_text("{}")
    assert f"is done: {record.parent}" in make("figure-reconstruction", "glyphs", RUN="false")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_regression_losses_from_pairs_to_table(scale):
    plan = make("table-regression-losses", scale, "mse", "e_latent_lpips", PLAN="1")
    assert f"pairs/{scale}" in plan and "64 images, 0 of them adversarial" in plan
    out = make("table-regression-losses", scale, "mse", "e_latent_lpips")
    made = records(scale, "regression-losses")
    assert set(made) == {f"{row}-seed-{seed}" for row in ("mse", "e_latent_lpips") for seed in range(3)}
    for record in made.values():
        assert record["metrics"][f"evaluation/fd_{InceptionFeatures().name}"] > 0
        assert record["images_seen"] == 64
    assert "| E-LatentLPIPS |" in out and "110.55" in out and "not measured" in out


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_discriminators_from_one_regression_to_table(scale):
    start = yaml.safe_load(Path(f"configs/tables/discriminator/start-{scale}.yaml").read_text())
    start["model"]["init_args"]["images"] = 32
    write(Path(f"configs/tables/discriminator/start-{scale}.yaml"), start)
    runs = yaml.safe_load(Path("runs.yaml").read_text())
    del runs["model"]["init_args"]["images"]  # given for all runs, it would change the start too
    write(Path("runs.yaml"), runs)
    table = yaml.safe_load(Path(f"configs/tables/discriminator/{scale}.yaml").read_text())
    table["model"]["init_args"] |= {"images": 64, "adversarial": {"init_args": {"starts_at_images": 32}}}
    write(Path(f"configs/tables/discriminator/{scale}.yaml"), table)
    content = yaml.safe_load(Path("configs/tables/discriminator.yaml").read_text()) | {"seeds": [0]}
    write(Path("configs/tables/discriminator.yaml"), content)
    out = make("table-discriminator", scale)
    made = records(scale, "discriminator")
    assert set(made) == {f"{row}-seed-0" for row in content["rows"]}
    settings = {json.dumps(record["config"]["model"]["init_args"].get("adversarial")) for record in made.values()}
    assert len(settings) == len(made) and all(record["images_seen"] == 64 for record in made.values())
    assert {row for row in content["rows"] if not _has_discriminator(scale, row)} == {"regression"}
    assert "| + single-sample R1 |" in out


def _has_discriminator(scale, row):
    file = Path("runs", "tables", scale, "discriminator", row, "seed-0", "checkpoints", "last.ckpt")
    return any(name.startswith("discriminator.") for name in torch.load(file, weights_only=True)["state_dict"])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_pipelines_on_coco(scale):
    name = {"sd15": "coco2014", "sdxl": "coco2017"}[scale]
    if scale == "sdxl":
        protocol = Path("configs/protocols/coco2017-5k-teacher.yaml")
        few = {"images": 7, "reference_images": None, "diversity_prompts": 2, "images_per_prompt": 2}
        metrics = {"metrics": ["fid", "kid", "fid_t"], "clip_model": None, "clip_weights": None}
        write(protocol, yaml.safe_load(protocol.read_text()) | few | metrics)
    row = Path(f"configs/tables/rows/{scale}/teacher.yaml")
    write(row, yaml.safe_load(row.read_text()) | {"pipeline": "tiny", "steps": 2})
    student = Path(f"configs/tables/rows/{scale}/student.yaml")
    write(student, yaml.safe_load(student.read_text()) | {"pipeline": "tiny"})
    out = make(f"table-{name}", scale, "teacher", "student")
    made = records(scale, name)
    images = {"sd15": 7, "sdxl": 7 + 2 * 2}[scale]
    assert {row: record["network_calls"] for row, record in made.items()} == {"teacher": 2, "student": 1}
    assert all(record["metrics"]["evaluation/images"] == images for record in made.values())
    assert "teacher, 50 steps" in out and "student, 1 step" in out
    compared = {row for row, record in made.items() if any("fd_t_" in key for key in record["metrics"])}
    assert compared == ({"student"} if scale == "sdxl" else set())  # with the teacher's images


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_agreement_with_people_from_weights_to_table(scale, tmp_path):
    write_bapps(tmp_path / "data" / "bapps" / "2afc")
    few = {"data": {"init_args": {"resolution": 64, "batch_size": 3, "workers": 0}}}
    cpu = {"recipe": {"teacher": "tiny"}, "trainer": {"accelerator": "cpu", "enable_model_summary": False}}
    write(tmp_path / "choices.yaml", cpu | few)
    out = make("table-bapps", scale, SWEEP="-c choices.yaml")
    (record,) = records(scale, "bapps").values()
    assert record["metrics"]["test/2afc"] == pytest.approx(ANSWERS)
    shown = {"sd15": "| LatentLPIPS | 90.00 | 74.29 |", "sdxl": "| LatentLPIPS | 90.00 |"}
    assert shown[scale] in out
