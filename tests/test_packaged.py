"""Configurations of the package, found from any folder."""

from pathlib import Path

import pytest

from diffgan.__main__ import main
from diffgan.cli.sweeps.table_file import read_table
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.rows import read_row
from diffgan.packaged import find_config, find_file, packaged_configs
from diffgan.prompts import PromptFile
from tests.runs import refused, write

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_checkout_has_no_copy_of_its_configurations():
    assert packaged_configs() == CONFIGS


@pytest.mark.parametrize(
    "name", ["glyphs/distill", "glyphs/distill.yaml", "configs/glyphs/distill", "configs/glyphs/distill.yaml"]
)
def test_a_name_stands_for_a_configuration_of_the_package(name):
    assert find_config(name) == str(CONFIGS / "glyphs" / "distill.yaml")


@pytest.mark.parametrize("local", ["glyphs/distill.yaml", "configs/glyphs/distill.yaml"])
def test_a_local_file_comes_first(elsewhere, local):
    Path(local).parent.mkdir(parents=True)
    Path(local).write_text("seed_everything: 1")
    assert find_config("glyphs/distill") == local


@pytest.mark.parametrize("name", ["s3://bucket/glyphs/distill.yaml", "other.yaml", "", "/configs/glyphs/distill.yaml"])
def test_any_other_name_is_returned_as_it_is(name):
    assert find_config(name) == name and find_file(name) == name


def test_only_paths_below_configs_are_files_of_the_package():
    assert find_file("configs/glyphs/prompts.txt") == str(CONFIGS / "glyphs" / "prompts.txt")
    for name in ("glyphs/prompts.txt", "configs/../pyproject.toml", "configs/glyphs", "configs/nothing.txt"):
        assert find_file(name) == name


def test_every_reader_finds_the_files_that_configurations_name():
    assert len(PromptFile("configs/glyphs/prompts.txt")) > 1000
    assert read_protocol(Path("configs/protocols/coco2014-30k.yaml")).name == "coco2014-30k"
    assert read_row(Path("configs/tables/rows/glyphs/teacher.yaml")).pipeline == "glyphs"
    assert read_table(Path("configs/tables/discriminator.yaml")).name == "discriminator"


def test_a_command_takes_configurations_by_name(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["predict", "-c", "glyphs/pairs", "--config=glyphs/demo-pairs", "--print_config"])
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert "folder: pairs/demo" in printed and "prompts: configs/glyphs/prompts.txt" in printed


def test_a_recipe_of_the_package_can_be_named(elsewhere, capsys):
    config = {"recipe": "configs/glyphs/recipe.yaml", "seed_everything": "${recipe.steps}"}
    write(elsewhere / "mine.yaml", config)
    with pytest.raises(SystemExit):
        main(["predict", "-c", "mine.yaml", "--print_config"])
    assert "seed_everything: 20" in capsys.readouterr().out


def test_a_misspelt_name_is_refused_with_the_most_similar_one(capsys):
    assert refused(capsys, "fit", "-c", "configs/glyphs/distil.yaml") == (
        "diffgan: error: -c configs/glyphs/distil.yaml: no such file; did you mean glyphs/distill? "
        "See diffgan configs list\n"
    )


def test_a_folder_is_copied_but_over_nothing(elsewhere, capsys):
    main(["configs", "copy", "glyphs", "mine"])
    assert (elsewhere / "mine" / "gpu" / "pairs.yaml").read_bytes() == (CONFIGS / "glyphs/gpu/pairs.yaml").read_bytes()
    assert not (elsewhere / "mine" / "results").exists()
    before = sorted(elsewhere.rglob("*"))
    assert "mine: exists" in refused(capsys, "configs", "copy", "sd15", "mine")
    assert "did you mean glyphs?" in refused(capsys, "configs", "copy", "glyps", "other")
    assert sorted(elsewhere.rglob("*")) == before


def test_the_list_names_what_c_takes(capsys):
    main(["configs", "list"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"glyphs/distill", "tables/rows/sdxl/lcm", "protocols/coco2014-30k"} <= set(names)
    assert all(Path(find_config(name)).is_file() for name in names)
