"""A Stable Diffusion small enough to run in every test, on one thread: bits depend on the number of threads."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; child processes inherit it

from pathlib import Path

import pytest

from diffgan.__main__ import main
from tests.object_stores import Gate, s3_server, use
from tests.pipelines import miniature, saved
from tests.runs import write


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
            "class_path": "diffgan.generation.PairGeneration",
            "init_args": {"teacher": str(tiny_pipeline), "steps": 2, "guidance": 2.0},
        },
        "data": {
            "class_path": "datamodules.prompts.Prompts",
            "init_args": {"prompts": str(folder / "prompts.txt"), "pairs": 40, "seed_base": 0, "batch_size": 8},
        },
    }
    main(["predict", "-c", write(folder / "pairs.yaml", config)])
    return folder / "set"


@pytest.fixture
def config(tiny_pipeline, pairs, tmp_path):
    """A distillation of 48 images in batches of 8."""
    return {
        "trainer": {
            "max_epochs": -1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 3,
            "log_every_n_steps": 1,
            "logger": {
                "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                "init_args": {"save_dir": str(tmp_path), "name": "run", "version": ""},
            },
            "callbacks": [
                {"class_path": "callbacks.ema.EMA", "init_args": {"half_life_images": 20, "log_every_images": 8}},
                {"class_path": "callbacks.image_checkpoint.ImageCheckpoint", "init_args": {"every_images": 8}},
                {
                    "class_path": "callbacks.sample_grid.SampleGrid",
                    "init_args": {"prompts": ["digit 7", ""], "steps": 2},
                },
                {"class_path": "callbacks.run_report.RunReport"},
            ],
        },
        "model": {
            "class_path": "diffgan.distillation.Diffusion2GAN",
            "init_args": {
                "teacher": str(tiny_pipeline),
                "images": 48,
                "warmup_images": 8,
                "regression": {"class_path": "diffgan.regression.PseudoHuber"},
                "generator_optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-3}},
            },
        },
        "data": {
            "class_path": "datamodules.latent_pairs.LatentPairs",
            "init_args": {"folder": str(pairs), "batch_size": 8, "validation_pairs": 8},
        },
    }


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
