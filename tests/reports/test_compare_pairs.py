"""What `diffgan test` stores of held-out pairs, against stock diffusers and the loss written out."""

import base64
import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from PIL import Image

from callbacks.compare_pairs import pair_distances
from diffgan.__main__ import main
from diffgan.losses.regression import RegressionLoss
from diffgan.pairs.pair_set import PairSet
from tests.processes import run_on_two_processes
from tests.runs import distillation, refused, write

COMPARE = {"class_path": "callbacks.compare_pairs.ComparePairs"}


@pytest.fixture(scope="module")
def trained(tiny_pipeline, pairs, tmp_path_factory):
    """The folder of a run after its fit; its test compares the 8 held-out pairs, the last of 40."""
    folder = tmp_path_factory.mktemp("trained")
    config = distillation(tiny_pipeline, pairs, folder)
    callbacks = [callback for callback in config["trainer"]["callbacks"] if "SampleGrid" not in callback["class_path"]]
    config["trainer"]["callbacks"] = [*callbacks, COMPARE]
    config["model"]["init_args"]["images"] = 16
    main(["fit", "-c", write(folder / "run.yaml", config)])
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


def words_of_test(run, **trainer):
    """The words after `diffgan` that test the run in this folder; trainer: other settings."""
    config = yaml.safe_load((run / "fit.yaml").read_text())
    config.pop("ckpt_path", None)
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(run.parent)
    config["trainer"] |= trainer
    return ["test", "-c", write(run.parent / "test.yaml", config)]


def record(run):
    return json.loads((run / "report.json").read_text())


def pixels(uri) -> np.ndarray:
    """(H, W, 3) of a data URI, as integers that may be subtracted."""
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).astype(int)


def test_images_and_distances_are_those_of_stock_diffusers(run, pairs, tmp_path, capsys):
    assert not (run / "report.json").exists()
    main(words_of_test(run))
    assert "report.html: 8 pairs, 6 with the largest distances" in capsys.readouterr().out
    stored = record(run)
    main(["export", str(run), str(tmp_path / "student")])
    student = StableDiffusionPipeline.from_pretrained(tmp_path / "student", safety_checker=None)
    held_out = PairSet(pairs).read(range(32, 40))
    once = {"num_inference_steps": 1, "guidance_scale": 1}
    for row, pair in enumerate(stored["first"]):
        assert (pair["number"], pair["seed"], pair["prompt"]) == (32 + row, 32 + row, held_out.prompt[row])
        noise, latent = held_out.noise[row : row + 1], held_out.latent[row : row + 1]
        generated = student(pair["prompt"], latents=noise, output_type="latent", **once).images
        c = 0.00054 * math.sqrt(latent.numel())  # PseudoHuber
        expected = math.sqrt(float((generated - latent).square().sum()) + c**2) - c
        assert pair["distance"] == stored["distances"][row] == pytest.approx(expected, rel=1e-3)
        scale = student.vae.config.scaling_factor
        with torch.no_grad():
            images = [student.vae.decode(x / scale).sample[0] for x in (latent, generated)]
        for uri, image in zip((pair["teacher"], pair["student"]), images, strict=True):
            expected = student.image_processor.postprocess(image[None], output_type="pil")[0]
            assert abs(pixels(uri) - np.asarray(expected).astype(int)).max() <= 1
    farthest = sorted(range(8), key=lambda row: -stored["distances"][row])[:6]
    assert [pair["number"] - 32 for pair in stored["largest"]] == farthest
    assert stored["distance_name"] == "PseudoHuber" and stored["image_size"] == [32, 32]
    assert (stored["steps"], stored["guidance"], stored["pair_count"], stored["images_seen"]) == (2, 2.0, 40, 16)


def test_two_processes_store_what_one_stores(run):
    main(words_of_test(run))
    alone = record(run)
    (run / "report.html").unlink()
    words = [*words_of_test(run), "-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    together = record(run)
    assert together["distances"] == pytest.approx(alone["distances"], rel=1e-5)
    for group in ("first", "largest"):
        assert [pair["number"] for pair in together[group]] == [pair["number"] for pair in alone[group]]
        for pair, other in zip(together[group], alone[group], strict=True):
            assert abs(pixels(pair["student"]) - pixels(other["student"])).max() <= 1
    assert (run / "report.html").is_file()


def test_distance_of_a_pair_depends_on_no_other():
    """With a loss that draws random numbers: the same for every pair, the mean of four calls."""

    class Noisy(RegressionLoss):
        def forward(self, generated, target, generator=None):
            return (generated - target).flatten(1).mean(1) + torch.randn(len(generated), generator=generator)

    generated, target = torch.randn(5, 4, 8, 8), torch.randn(5, 4, 8, 8)
    draws = [torch.randn(1, generator=torch.Generator().manual_seed(seed)).item() for seed in range(4)]
    expected = (generated - target).mean((1, 2, 3)) + sum(draws) / 4
    torch.testing.assert_close(pair_distances(Noisy(), generated, target), expected)
    one = pair_distances(Noisy(), generated[3:4], target[3:4])
    torch.testing.assert_close(one, expected[3:4])


def test_pairs_without_a_record_of_metrics_are_refused(run, capsys):
    error = refused(capsys, *words_of_test(run, callbacks=[COMPARE]))
    assert "ComparePairs: requires the callback RunReport" in error


def test_student_that_is_not_finite_is_refused_and_no_page_written(run, capsys):
    last = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(last, weights_only=True)
    for name, weight in checkpoint["state_dict"].items():
        if name.startswith("generator_ema"):
            weight.fill_(math.nan)
    torch.save(checkpoint, last)
    error = refused(capsys, *words_of_test(run))
    assert "is not finite" in error
    assert not (run / "report.html").exists() and not (run / "report.json").exists()
    assert math.isnan(json.loads((run / "metrics.json").read_text())["metrics"]["validation/mse"])
