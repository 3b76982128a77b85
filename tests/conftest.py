"""A Stable Diffusion small enough to run in every test, on one thread: bits depend on the number of threads."""

import os
import shutil

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it

import subprocess
from pathlib import Path

import pytest

from diffgan.__main__ import main
from tests import pair_sets
from tests.object_stores import Gate, s3_server, use
from tests.pipelines import miniature, saved
from tests.runs import distillation, write


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory) -> Path:
    """Directory of a random pipeline that nobody may change."""
    return saved(miniature, tmp_path_factory.mktemp("teacher") / "tiny")


@pytest.fixture(scope="session")
def other_pipeline(tmp_path_factory) -> Path:
    """The same architecture with other weights."""
    return saved(miniature, tmp_path_factory.mktemp("teacher") / "other", seed=1)


@pytest.fixture(scope="session")
def pairs(tiny_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "prompts.txt").write_text("a bold capital A in red on cream\ndigit 7\n")
    config = {
        "trainer": {
            "accelerator": "cpu",
            "default_root_dir": str(folder),
            "logger": False,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "class_path": "callbacks.pair_writer.PairWriter",
                    "init_args": {"folder": str(folder / "set"), "shard_size": 16},
                },
            ],
        },
        "model": {
            "class_path": "diffgan.pairs.generation.PairGeneration",
            "init_args": {"teacher": str(tiny_pipeline), "steps": 2, "guidance": 2.0},
        },
        "data": {
            "class_path": "datamodules.prompts.Prompts",
            "init_args": {"prompts": str(folder / "prompts.txt"), "pairs": 40, "seed_base": 0, "batch_size": 8},
        },
    }
    main(["predict", "-c", write(folder / "pairs.yaml", config)])
    return folder / "set"


@pytest.fixture(scope="session")
def command(tiny_pipeline, tmp_path_factory):
    """command(folder, *more): the words after `diffgan` that make a small pair set in `folder`."""
    configs = tmp_path_factory.mktemp("command")
    prompts = configs / "prompts.txt"
    prompts.write_text("capital A in red\n\ndigit 7 on cream\r\n  grüße ☃ \n", encoding="utf-8")

    def words(folder: Path, *more: str) -> list[str]:
        return [*pair_sets.predict_words(configs / f"{folder.name}.yaml", folder, tiny_pipeline, prompts), *more]

    return words


@pytest.fixture(scope="session")
def unbroken(command, tmp_path_factory):
    """That set, made by one uninterrupted run; tests must not change it."""
    folder = tmp_path_factory.mktemp("pairs") / "unbroken"
    main(command(folder))
    return folder


@pytest.fixture
def complete_set(unbroken, tmp_path):
    """A copy of `unbroken` that a test may change."""
    return shutil.copytree(unbroken, tmp_path / "complete")


@pytest.fixture
def config(tiny_pipeline, pairs, tmp_path):
    return distillation(tiny_pipeline, pairs, tmp_path)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory):
    """Copies of remote files go to a folder of the tests'."""
    os.environ["DIFFGAN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def s3_endpoint():
    with s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_endpoint, monkeypatch, tmp_path) -> str:
    """URL of an empty folder on an S3 server."""
    use(monkeypatch, s3_endpoint)
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def gate(s3, s3_endpoint, monkeypatch):
    """What stands before that server and can be told to fail."""
    gate = Gate(s3_endpoint)
    use(monkeypatch, gate.url)
    yield gate
    gate.close()


@pytest.fixture
def small_disk(tmp_path):
    """mounted(options): a file system in memory, mounted with these options."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("no right to mount here")
    yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True) and folder
    subprocess.run(["umount", folder], check=True)
