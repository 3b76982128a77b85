"""The wheel, installed in a folder of its own and used from folders that have nothing to do with the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", minversion="77")
ROOT = Path(__file__).parents[2]
SOURCES = ("diffgan", "callbacks", "datamodules", "configs", "pyproject.toml", "README.md", "LICENSE", "NOTICE")
FEW_PAIRS = ("--data.pairs", "16", "--data.batch_size", "8", "--recipe.steps", "1")
FEW_IMAGES = (
    *("--model.images", "16", "--model.warmup_images", "4", "--model.cooldown_images", "0", "--recipe.steps", "1"),
    *("--model.adversarial.starts_at_images", "8", "--data.validation_pairs", "4"),
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's file; built in a copy of the sources, in which nothing else is left."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    before = files_below(source)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", dist]
    run([sys.executable, "-m", "pip", "wheel", *options, source], source)
    new = {file for file in files_below(source) - before if file.suffix != ".pyc"}
    assert {file.parts[0] for file in new} <= {"build", "diffgan.egg-info"}  # which .gitignore names
    (file,) = dist.iterdir()
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The folder that the wheel is installed in."""
    site = tmp_path_factory.mktemp("site")
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], site)
    return site


@pytest.fixture
def folder(tmp_path):
    """A folder of somebody whose packages have the names of ours."""
    for name in ("callbacks", "datamodules"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported from the current folder')\n")
    (tmp_path / "diffgan").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "prompts.txt").write_text("digit 7\nsmall g on blue\n")
    return tmp_path


def files_below(folder):
    return {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}


def run(words, folder, **environment):
    """Run a command in a folder; returns its standard output."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run(list(map(str, words)), cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_holds_the_configurations_without_records(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    configs = {name.removeprefix("diffgan/_configs/") for name in names if name.startswith("diffgan/_configs/")}
    here = {str(file) for file in files_below(ROOT / "configs") if not {"results", "readme"} & set(file.parts)}
    assert configs == here and "glyphs/prompts.txt" in here
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {
        "callbacks", "datamodules", "diffgan"
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["command", "module"])
def test_it_runs_from_a_folder_with_packages_of_the_same_names(how, installed, folder):
    diffgan = [installed / "bin" / "diffgan"] if how == "command" else [sys.executable, "-m", "diffgan"]
    site = {"PYTHONPATH": str(installed)}

    def command(*words):
        return run([*diffgan, *words], folder, **site)

    assert "glyphs/distill" in command("configs", "list")
    command("sample", "digit 7", "--student", "glyphs", "--output", "samples")
    assert len(list((folder / "samples").glob("*.png"))) == 1
    command("predict", "-c", "glyphs/pairs", "-c", "configs/glyphs/demo-pairs.yaml", *FEW_PAIRS)
    assert (folder / "pairs" / "demo" / "manifest.json").is_file()
    command("fit", "-c", "glyphs/distill", "-c", "glyphs/demo-distill", *FEW_IMAGES)
    assert (folder / "runs" / "demo" / "distill" / "checkpoints" / "last.ckpt").is_file()


IMAGES = ("glyphs", "o.json", "--prompts", "prompts.txt", "--steps", "1", "--guidance", "1", "--batch_size", "1")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("how", ["spawned", "torchrun"])
def test_further_processes_do_too(how, installed, folder):
    spawned = [sys.executable, "-m", "diffgan", "evaluate", "--devices", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "diffgan", "evaluate"]
    words = spawned if how == "spawned" else torchrun
    run([*words, *IMAGES, "--save_images", "images"], folder, PYTHONPATH=str(installed))
    assert {"00000.png", "00001.png"} < {file.name for file in (folder / "images").iterdir()}
