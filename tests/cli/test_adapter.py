"""A teacher family outside the package: a pipeline class of one's own, from pairs to images."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from diffgan.__main__ import main
from diffgan.pairs.pair_set import PairSet
from diffgan.teachers.registry import FAMILIES, load_teacher
from tests.cli.test_families import PROMPTS, pair_config, with_discriminator
from tests.pipelines import miniature, saved
from tests.runs import refused, write

README = Path("diffgan/teachers/README.md")


@pytest.fixture
def worked_example(tmp_path, monkeypatch):
    """The README's example as a file in a folder of the user's, and a pipeline of its class."""
    code = README.read_text().split("```python\n# my_family.py\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 60
    (tmp_path / "my_family.py").write_text(code)
    folder = saved(miniature, tmp_path / "teacher")
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("StableDiffusionPipeline", "ShoutingPipeline"))
    before = dict(FAMILIES)
    yield str(tmp_path / "my_family.py") + ":Shouting", folder
    FAMILIES.clear()
    FAMILIES.update(before)


def test_from_pairs_to_images(worked_example, config, tmp_path, capsys):
    adapter, folder = worked_example
    pairs = write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path))
    assert "is a ShoutingPipeline" in refused(capsys, "predict", "-c", pairs)
    main(["predict", "-c", pairs, "--adapter", adapter])
    plain = load_teacher(str(saved(miniature, tmp_path / "plain")))
    stored = PairSet(tmp_path / "pairs").read(range(4))
    loud = plain.encode([prompt.upper() for prompt in stored.prompt])
    expected = plain.solve(stored.noise, loud, 2, 2.0)
    torch.testing.assert_close(stored.latent.float(), expected, atol=2e-3, rtol=2e-3)
    main(["pairs", "verify", str(tmp_path / "pairs"), "--sample", "2", f"--adapter={adapter}"])
    training = with_discriminator(config, folder, tmp_path / "pairs") | {"adapter": adapter}  # in the file, too
    main(["fit", "-c", write(tmp_path / "fit.yaml", training)])
    main(["export", str(tmp_path / "run"), str(tmp_path / "student"), "--adapter", adapter])
    words = ["--student", str(tmp_path / "student"), "--output", str(tmp_path / "images"), "--adapter", adapter]
    main(["sample", *PROMPTS, *words])
    assert [Image.open(file).size for file in sorted((tmp_path / "images").glob("*.png"))] == [(32, 32)] * 2


def test_nothing_is_imported_that_the_user_does_not_name(worked_example, config, tmp_path, capsys):
    """A manifest and a saved run name no adapter that is imported by itself."""
    adapter, folder = worked_example
    main(["predict", "-c", write(tmp_path / "pairs.yaml", pair_config(folder, tmp_path)), "--adapter", adapter])
    del FAMILIES["ShoutingPipeline"]
    assert "is a ShoutingPipeline" in refused(capsys, "pairs", "verify", str(tmp_path / "pairs"))


@pytest.mark.parametrize(
    "name, reason",
    [
        ("", "must be module:Class"),
        ("json", "must be module:Class"),
        ("no_such_module:Class", "cannot be imported (ModuleNotFoundError"),
        ("broken.py:Class", "cannot be imported (ZeroDivisionError"),
        ("missing.py:Class", "cannot be imported (FileNotFoundError"),
        ("json:JSONDecoder", "has no class JSONDecoder that is a diffgan.teachers.base.Teacher"),
        ("diffgan.teachers.base:Teacher", "Teacher.pipeline_class is no pipeline class"),
    ],
)
def test_what_is_no_family_is_refused(name, reason, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0")
    assert reason in refused(capsys, "sample", "digit 7", "--adapter", name)
