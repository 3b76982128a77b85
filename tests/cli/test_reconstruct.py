"""Reconstruction of single images through the command line, as figure and record."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from diffgan.__main__ import main
from diffgan.latent_space import PIXELS
from diffgan.losses.regression import MSE
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.reconstruction import reconstruct_latent
from diffgan.perceptual.weights import PerceptualWeights, save_weights


@pytest.fixture
def pixels(tmp_path):
    torch.manual_seed(0)
    network = LatentVGG16(3, width=0.125, omitted_pools=0)
    save_weights(tmp_path / "pixels.safetensors", PerceptualWeights(network, PIXELS))
    return str(tmp_path / "pixels.safetensors")


def test_latents_reach_their_target_under_a_plain_distance():
    start, target = torch.randn(2, 2, 3, 8, 8)
    latent, curve = reconstruct_latent(MSE(), start, target, steps=300, learning_rate=0.1, name="mse")
    torch.testing.assert_close(latent, target, atol=0.02, rtol=0)
    assert curve[0] == (0, pytest.approx(float((start - target).square().mean())))
    assert curve[-1][0] == 300 and curve[-1][1] < 1e-3


def test_figure_is_written(pixels, tmp_path):
    main(["reconstruct", str(tmp_path / "out"), "--pixels", pixels, "--count", "2", "--steps", "20"])
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(record["metrics"]) == [
        "LPIPS, pixels", "LatentLPIPS", "E-LatentLPIPS b", "E-LatentLPIPS bg", "E-LatentLPIPS bgo"
    ]  # fmt: skip
    assert all(row["psnr"] > 0 and row["latent_mse"] > 0 for row in record["metrics"].values())
    for name in ("curves.png", "images.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).std() > 10


def test_wrong_inputs_fail_with_one_line(pixels, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    sizes = tmp_path / "sizes"
    sizes.mkdir()
    for name, side in (("a", 64), ("b", 32)):
        Image.new("RGB", (side, side)).save(sizes / f"{name}.png")
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    Image.new("RGB", (8, 8)).save(tiny / "a.png")
    cases = {tmp_path / "empty": "no PNG", sizes: "different sizes", tiny: "needs sides of at least 16, not 8 x 8"}
    for folder, named in cases.items():
        with pytest.raises(SystemExit):
            main(["reconstruct", str(tmp_path / "out"), "--pixels", pixels, "--images", str(folder), "--steps", "1"])
        assert named in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
