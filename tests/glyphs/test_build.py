"""The files of the package that are built from others, through the command line of `diffgan.glyphs.build`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffgan.glyphs.build import main
from diffgan.storage.embedded import embedded
from diffgan.teachers.registry import load_teacher


def test_the_committed_prompts_are_built_captions(tmp_path):
    target = tmp_path / "prompts.txt"
    subprocess.run([sys.executable, "-m", "diffgan.glyphs.build", "captions", "100", target], check=True)
    committed = Path("configs/glyphs/prompts.txt").read_text().splitlines()
    assert target.read_text().splitlines() == committed[:100]


def test_a_built_pipeline_has_half_precision_and_does_not_name_its_source(tiny_pipeline, tmp_path):
    main(["pipeline", str(tiny_pipeline), str(tmp_path / "built")])
    built, source = (load_teacher(str(path)) for path in (tmp_path / "built", tiny_pipeline))
    for name in ("vae", "unet"):
        weights = load_file(tmp_path / "built" / name / "diffusion_pytorch_model.safetensors")
        assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
        for half, full in zip(getattr(built, name).parameters(), getattr(source, name).parameters(), strict=True):
            assert torch.equal(half, full.half().float())
    for file in (tmp_path / "built").rglob("*.json"):
        assert str(tiny_pipeline) not in file.read_text()


def test_building_the_teacher_of_the_package_again_changes_no_weight(tmp_path):
    """The command of `make glyph-teacher`, on what it wrote."""
    teacher = embedded("teacher")
    main(["pipeline", str(teacher), str(tmp_path / "built")])
    files = [path.relative_to(teacher) for path in teacher.rglob("*.safetensors")]
    assert len(files) == 3
    for file in files:
        old, new = load_file(teacher / file), load_file(tmp_path / "built" / file)
        assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize(
    ("words", "named"), [(("pipeline", "missing"), "missing"), (("captions", "many"), "many"), (("all", "a"), "all")]
)
def test_wrong_words_fail_with_one_line(words, named, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*words, str(tmp_path / "out")])
    assert stop.value.code not in (0, None)
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
