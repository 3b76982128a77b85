import shutil
from pathlib import Path

import pytest
import yaml

from diffgan.__main__ import main
from tests.pair_sets import BATCH, PAIRS, SHARD


@pytest.fixture(scope="session")
def command(tiny_pipeline, tmp_path_factory):
    """command(folder, *more): the words after `diffgan` that make a small set in `folder`."""
    tmp_path = tmp_path_factory.mktemp("command")
    (tmp_path / "prompts.txt").write_text("capital A in red\n\ndigit 7 on cream\r\n  grüße ☃ \n", encoding="utf-8")

    def words(folder: Path, *more: str) -> list[str]:
        config = yaml.safe_load(Path("configs/glyphs/pairs.yaml").read_text())
        config["trainer"] |= {"default_root_dir": str(folder), "accelerator": "cpu"}
        config["trainer"]["callbacks"][0]["init_args"] |= {"folder": str(folder), "shard_size": SHARD}
        config["model"]["init_args"] |= {"teacher": str(tiny_pipeline), "steps": 2}
        numbers = {"pairs": PAIRS, "batch_size": BATCH, "seed_base": 10}
        config["data"]["init_args"] |= {"prompts": str(tmp_path / "prompts.txt"), **numbers}
        file = tmp_path / f"{folder.name}.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["predict", "-c", str(file), *more]

    return words


@pytest.fixture(scope="session")
def unbroken(command, tmp_path_factory):
    """A set made in one go, which nobody may change."""
    folder = tmp_path_factory.mktemp("pairs") / "unbroken"
    main(command(folder))
    return folder


@pytest.fixture
def whole(unbroken, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(unbroken, tmp_path / "whole")
