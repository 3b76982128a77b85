"""Labelled image folders as latents, encoded on the fly and cached, through the stage that uses them."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diffgan.__main__ import main
from diffgan.teachers.autoencoders import Encoder

VAE = "diffgan/glyphs/weights/teacher/vae"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name, colour in (("dark", 40), ("light", 200)):
            place = tmp_path / "images" / split / name
            place.mkdir(parents=True)
            for i in range(6):
                pixels = rng.normal(colour, 20, (48, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{i}.png")
    return tmp_path / "images"


def config(folder, tmp_path, **data):
    place = {"save_dir": str(tmp_path), "name": "run", "version": ""}
    return {
        "trainer": {
            "max_steps": 60,
            "val_check_interval": 60,
            "check_val_every_n_epoch": None,
            "num_sanity_val_steps": 0,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": place},
            "callbacks": [{"class_path": "callbacks.run_report.RunReport"}],
        },
        "model": {
            "class_path": "diffgan.perceptual.classification.LatentClassificationTraining",
            "init_args": {
                "vae": VAE,
                "target": str(tmp_path / "vgg.safetensors"),
                "classes": [2],
                "steps": 60,
                "warmup": 2,
                "width": 0.125,
                "norm": "group",
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 3e-4}},
            },
        },
        "data": {
            "class_path": "datamodules.image_folder.ImageFolderLatents",
            "init_args": {"folder": str(folder), "vae": VAE, "size": 32, "batch_size": 4, "workers": 0} | data,
        },
    }


def fit(config, tmp_path):
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "-c", str(tmp_path / "fit.yaml")])


def test_dark_and_light_images_are_classified(folder, tmp_path):
    fit(config(folder, tmp_path), tmp_path)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["metrics"]
    assert metrics["validation/top1_0"] > 0.8 and metrics["validation/top5_0"] == 1.0


def test_an_interrupted_cache_is_completed(folder, tmp_path):
    cached = config(folder, tmp_path, cache=str(tmp_path / "cache"), crops=2, shard_size=10)
    fit(cached, tmp_path)
    files = sorted((tmp_path / "cache").iterdir())
    assert [len(list((tmp_path / "cache").glob(f"{split}-*"))) for split in ("train", "validation")] == [3, 2]
    times = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    fit(cached, tmp_path)
    again = sorted((tmp_path / "cache").iterdir())
    assert again == files and [file.stat().st_mtime_ns for file in again][1:] == times[1:]


def test_cached_latents_equal_those_encoded_on_the_fly(folder, tmp_path):
    from lightning.pytorch import Trainer

    from datamodules.image_folder import ImageFolderLatents

    latents = []
    for cache in (None, tmp_path / "cache"):
        data = ImageFolderLatents(folder, VAE, size=32, batch_size=4, workers=0, cache=cache)
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        data.setup("fit")
        latents.append(torch.cat([data.on_after_batch_transfer(b, 0).latent for b in data.val_dataloader()]))
    torch.testing.assert_close(*latents, atol=2e-2, rtol=0)  # stored as float16
    assert latents[0].shape == (12, 3, 8, 8) and latents[0].std() > 0.1


def test_under_bf16_mixed_images_are_encoded_in_bfloat16(folder, tmp_path):
    from lightning.pytorch import Trainer

    from datamodules.image_folder import ImageFolderLatents

    latents, files = {}, {}
    for precision in ("32-true", "bf16-mixed"):
        data = ImageFolderLatents(folder, VAE, size=32, batch_size=12, workers=0, cache=tmp_path / "cache")
        data.trainer = Trainer(accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False)
        data.setup("fit")
        files[precision] = set((tmp_path / "cache").iterdir()) - set().union(*files.values())
        data.cache = None
        data.setup("fit")
        (batch,) = data.val_dataloader()
        latents[precision] = data.on_after_batch_transfer(batch, 0).latent
        encoder, autocast = Encoder(VAE), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")
        with autocast:
            assert torch.equal(latents[precision], encoder(batch.latent).float())
    exact, rounded = latents.values()
    assert 0 < (exact - rounded).abs().max() < 0.1
    assert len(files["bf16-mixed"]) == len(files["32-true"]) == 2  # other names, since their latents differ


def test_without_an_autoencoder_images_are_not_encoded():
    images = torch.rand(2, 3, 8, 8)
    assert Encoder(None)(images) is images


def test_wrong_folders_are_reported(folder, tmp_path, capsys):
    def refusal(place, **changes):
        with pytest.raises(SystemExit):
            fit(config(place, tmp_path, **changes), tmp_path)
        return capsys.readouterr().err

    assert "nowhere" in refusal(tmp_path / "nowhere")
    assert "no-vae" in refusal(folder, vae=str(tmp_path / "no-vae"))
    (folder / "train" / "dark" / "0.png").write_bytes(b"no")
    assert "0.png" in refusal(folder)
