"""2AFC score, distortions, and the calibration stage through the command line."""

import json

import pytest
import torch

from datamodules.two_afc import SyntheticGlyphTwoAFCDataset
from diffgan.__main__ import main
from diffgan.glyphs.distortions import FAMILIES, distort
from diffgan.perceptual.lpips import LatentLPIPS
from diffgan.perceptual.two_afc import RankingLoss, two_afc_score
from diffgan.perceptual.weights import load_weights
from tests.bapps import write_bapps
from tests.runs import shipped_config, write


def test_two_afc_by_hand():
    first, second = torch.tensor([1.0, 2.0, 2.0, 1.0]), torch.tensor([2.0, 1.0, 1.0, 1.0])
    preference = torch.tensor([0.25, 0.25, 1.0, 0.9])
    torch.testing.assert_close(two_afc_score(first, second, preference), torch.tensor([0.75, 0.25, 1.0, 0.5]))


def test_ranking_loss_learns_which_is_smaller():
    torch.manual_seed(0)
    ranking = RankingLoss()
    optimizer = torch.optim.Adam(ranking.parameters(), 1e-2)
    for _ in range(300):
        first, second = torch.rand(2, 64)
        loss = ranking(first, second, (first > second).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.2 < RankingLoss()(first, second, (first > second).float())


@pytest.mark.parametrize("family", FAMILIES)
def test_distortions_grow_with_their_strength(family):
    images = SyntheticGlyphTwoAFCDataset("train", 100, 3).__getitems__(range(24)).reference
    generator = torch.Generator().manual_seed(0)
    distances = [
        (distort(images, family, torch.full((24,), strength), generator) - images).square().mean()
        for strength in (0.0, 0.5, 1.0)
    ]
    assert 0 < 1.5 * distances[0] < distances[1] < distances[2] / 1.5


def test_a_triplet_is_a_function_of_its_index():
    dataset = SyntheticGlyphTwoAFCDataset("train", 100, 7)
    many, few = dataset.__getitems__(range(12)), dataset.__getitems__([11, 4])
    for column in ("reference", "first", "second", "preference"):
        assert torch.equal(getattr(few, column), getattr(many, column)[[11, 4]])
    assert few.family == [many.family[11], many.family[4]] and set(many.family) == set(FAMILIES)
    assert set(many.preference.tolist()) == {0.0, 1.0}


@pytest.fixture
def config(tmp_path):
    config = shipped_config("glyphs/calibration")
    config["trainer"] |= {"max_steps": 12, "val_check_interval": 12, "enable_progress_bar": False, "accelerator": "cpu"}
    config["trainer"]["logger"]["init_args"]["save_dir"] = str(tmp_path)
    target = str(tmp_path / "out.safetensors")
    config["model"]["init_args"] |= {"weights": "glyphs", "target": target, "steps": 12, "cooldown": 4}
    config["model"]["init_args"]["optimizer"]["init_args"]["lr"] = 1.0
    config["data"]["init_args"] |= {"batch_size": 12, "train": 144, "validation": 24, "test": 24, "workers": 0}
    return config


def test_calibration_writes_non_negative_heads(config, tmp_path):
    main(["fit", "-c", write(tmp_path / "fit.yaml", config)])
    before, after = load_weights("glyphs"), load_weights(tmp_path / "out.safetensors")
    assert after.space == before.space
    torch.testing.assert_close(torch.tensor(after.statistics), torch.tensor(before.statistics), rtol=0.1, atol=0.1)
    assert all((head >= 0).all() for head in after.heads) and any((head == 0).any() for head in after.heads)
    for name, weight in before.network.state_dict().items():
        assert torch.equal(weight, after.network.state_dict()[name])
    x, y = torch.randn(2, 2, 3, 16, 16)
    assert not torch.allclose(LatentLPIPS("glyphs")(x, y), LatentLPIPS(tmp_path / "out.safetensors")(x, y))
    written = (tmp_path / "out.safetensors").read_bytes()
    main(["fit", "-c", write(tmp_path / "fit.yaml", config), "--trainer.fast_dev_run", "1"])
    assert (tmp_path / "out.safetensors").read_bytes() == written
    config["model"]["init_args"]["weights"] = str(tmp_path / "out.safetensors")
    main(["test", "-c", write(tmp_path / "test.yaml", config)])
    metrics = json.loads((tmp_path / "calibration" / "metrics.json").read_text())["metrics"]
    assert {f"test/2afc_{family}" for family in FAMILIES} < set(metrics) and metrics["test/2afc"] > 0.6


@pytest.fixture
def bapps(tmp_path):
    return write_bapps(tmp_path / "2afc")


def test_bapps_folders_are_evaluated(bapps, config, tmp_path):
    vae = "diffgan/glyphs/weights/teacher/vae"
    options = {"folder": str(bapps), "vae": vae, "resolution": 64, "batch_size": 3, "workers": 0}
    config["data"] = {"class_path": "datamodules.two_afc.BAPPS", "init_args": options}
    main(["test", "-c", write(tmp_path / "test.yaml", config)])
    metrics = json.loads((tmp_path / "calibration" / "metrics.json").read_text())["metrics"]
    assert metrics["test/2afc"] == metrics["test/2afc_cnn"] == metrics["test/2afc_traditional"] == pytest.approx(0.9)


def test_broken_bapps_folders_fail_with_one_line(bapps, config, tmp_path, capsys):
    options = {"folder": str(bapps), "vae": None, "batch_size": 3, "workers": 0, "families": ["cnn"]}
    config["data"] = {"class_path": "datamodules.two_afc.BAPPS", "init_args": options}

    def error_of(**changes):
        options.update(changes)
        with pytest.raises(SystemExit):
            main(["test", "-c", write(tmp_path / "test.yaml", config)])
        return capsys.readouterr().err

    assert "missing" in error_of(folder=str(tmp_path / "missing"))
    assert "'video'" in error_of(folder=str(bapps), families=["video"])
    (bapps / "val" / "cnn" / "judge" / "000001.npy").write_bytes(b"no")
    assert "000001.npy" in error_of(families=["cnn"])
    (bapps / "val" / "cnn" / "p0" / "000001.png").write_bytes(b"no")
    assert "000001.png" in error_of(families=["cnn"])
