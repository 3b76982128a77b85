"""Saving during a fit: in the background, killed, refused by the disk, two fits in one folder, the best validation."""

import json
import os
import signal
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from diffgan.__main__ import main
from diffgan.storage.folder_lock import FolderLock
from diffgan.training.checkpoints import find_damage
from tests.processes import SERVER, run_on_two_processes, start
from tests.runs import assert_same_weights, checkpoint, curves, named, refused, write


@pytest.fixture
def saving_config(config):
    """48 images in batches of 8, validated after every one, without sample grids and reports."""
    config["trainer"]["callbacks"] = config["trainer"]["callbacks"][:2]
    config["trainer"]["val_check_interval"] = 1
    return config


def saver(config):
    """Arguments of the ImageCheckpoint callback in a configuration."""
    return config["trainer"]["callbacks"][1]["init_args"]


def slow_disk(words, seconds):
    """The command on a disk that takes so long for each checkpoint."""
    sync = os.fsync
    os.fsync = lambda descriptor: (time.sleep(seconds), sync(descriptor))
    main(words)


def start_on_slow_disk(words, seconds):
    process = SERVER.Process(target=slow_disk, args=(words, seconds))
    process.start()
    return process


def wait_for(condition, process):
    while not condition() and process.is_alive():
        time.sleep(0.01)
    assert process.is_alive()


def assert_same_optimizers(run, other):
    for one, two in zip(*(checkpoint(folder)["optimizer_states"] for folder in (run, other)), strict=True):
        for name, state in one["state"].items():
            assert all(torch.equal(value, two["state"][name][key]) for key, value in state.items())


# ---- in the background ----


def test_asynchronous_saves_equal_those_at_once(saving_config, tmp_path):
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])
    later = named(saving_config, "later")
    saver(later)["asynchronous"] = True
    main(["fit", "-c", write(tmp_path / "later.yaml", later)])
    assert_same_weights(tmp_path / "run", tmp_path / "later")
    assert_same_optimizers(tmp_path / "run", tmp_path / "later")
    assert sorted(os.listdir(tmp_path / "later" / "checkpoints")) == ["last.ckpt", "previous.ckpt"]
    previous = torch.load(tmp_path / "later" / "checkpoints" / "previous.ckpt", weights_only=True)
    assert previous["images_seen"] == 40 and checkpoint(tmp_path / "later")["images_seen"] == 48


def test_sigterm_waits_for_the_checkpoint_that_is_being_written(saving_config, tmp_path):
    saving_config["model"]["init_args"]["images"] = 100_000
    saver(saving_config).update(asynchronous=True, every_images=8)
    child = start_on_slow_disk(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)], 2.0)
    folder = tmp_path / "run" / "checkpoints"
    wait_for((folder / "last.ckpt.partial").is_file, child)
    assert not (folder / "last.ckpt").exists()
    os.kill(child.pid, signal.SIGTERM)
    child.join(120)
    assert child.exitcode == 128 + signal.SIGTERM
    assert find_damage(folder / "last.ckpt") is None and not (folder / "last.ckpt.partial").exists()
    saving_config["model"]["init_args"]["images"] = checkpoint(tmp_path / "run")["images_seen"] + 8
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_in_one_line(
    saving_config, tmp_path, capsys, monkeypatch, asynchronous
):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    saver(saving_config)["asynchronous"] = asynchronous
    (line,) = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", saving_config)).splitlines()
    assert "last.ckpt.partial: the checkpoint cannot be written" in line and "No space left" in line
    assert not os.listdir(tmp_path / "run" / "checkpoints")


class FullDisk(pl.Callback):
    """The disk of the first process has no space for checkpoints."""

    def on_train_start(self, trainer, pl_module):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        if trainer.is_global_zero:
            os.fsync = full


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_checkpoint_that_the_first_process_cannot_write_ends_both(saving_config, tmp_path, asynchronous):
    """At once, or when the processes next exchange whether one received a signal."""
    saving_config["model"]["init_args"]["images"] = 200
    saving_config["trainer"]["val_check_interval"] = 100
    saving_config["trainer"]["callbacks"].append({"class_path": "tests.methods.test_saving.FullDisk"})
    saver(saving_config).update(asynchronous=asynchronous, every_images=104)
    words = ["fit", "-c", write(tmp_path / "fit.yaml", saving_config), "-c", "configs/strategies/ddp.yaml"]
    assert run_on_two_processes([*words, "--trainer.devices", "2"], errors=tmp_path / "errors") == [1, 1]
    error = (tmp_path / "errors").read_text()
    lines = [line for line in error.splitlines() if "error: " in line]
    assert len(lines) == 1 and "last.ckpt.partial: the checkpoint cannot be written" in lines[0], error
    assert "Traceback" not in error and not os.listdir(tmp_path / "run" / "checkpoints")
    assert max(images for _, images in curves(tmp_path / "run")) < 200


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_save_in_the_background(saving_config, tmp_path, strategy):
    """The first writes; the best checkpoint is that of one process."""
    saving_config["model"]["init_args"]["generator_optimizer"]["init_args"]["eps"] = 1e-3
    saving_config["model"]["init_args"]["images"] = 24
    saver(saving_config).update(asynchronous=True, monitor="validation/mse")
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])
    together = write(tmp_path / "together.yaml", named(saving_config, "together"))
    words = ["fit", "-c", together, "-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "2"]
    assert run_on_two_processes(words) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "together", exactly=False, atol=5e-6, rtol=1e-4)
    files = [tmp_path / name / "checkpoints" / "best.ckpt" for name in ("run", "together")]
    one, two = (torch.load(file, weights_only=True)["images_seen"] for file in files)
    assert one == two


# ---- kills ----


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_twenty_kills_during_saving(saving_config, tmp_path, asynchronous):
    """The newest checkpoint is always complete, and the run ends as the uninterrupted one."""
    saver(saving_config).update(asynchronous=asynchronous, monitor="validation/mse")
    saving_config["model"]["init_args"]["images"] = 800
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])
    words = ["fit", "-c", write(tmp_path / "killed.yaml", named(saving_config, "killed"))]
    folder, random = tmp_path / "killed" / "checkpoints", torch.Generator().manual_seed(0)
    for _ in range(20):
        child = start_on_slow_disk(words, 0.02)
        wait_for((folder / "last.ckpt.partial").is_file, child)
        time.sleep(0.3 * torch.rand((), generator=random).item())
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        named_files = [folder / name for name in ("last.ckpt", "previous.ckpt", "best.ckpt")]
        assert all(find_damage(file) is None for file in named_files if file.exists())
    main(words)
    assert_same_weights(tmp_path / "run", tmp_path / "killed")
    assert_same_optimizers(tmp_path / "run", tmp_path / "killed")


# ---- two fits in one folder ----


def contents(folder):
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_a_second_fit_in_the_folder_is_refused(saving_config, tmp_path, capsys):
    """Nothing is written by it; after SIGKILL of the first the same command goes on at once."""
    saving_config["model"]["init_args"]["images"] = 100_000
    saving_config["data"]["init_args"]["workers"] = 1  # a process that outlives a killed fit for seconds
    saver(saving_config)["every_images"] = 100_000
    path = write(tmp_path / "fit.yaml", saving_config)
    child = start(["fit", "-c", path])
    wait_for((tmp_path / "run" / "hparams.yaml").is_file, child)  # the last file before the first checkpoint
    before = set(contents(tmp_path / "run"))
    (line,) = refused(capsys, "fit", "-c", path, "--model.init_args.images", "8").splitlines()
    assert line.startswith(f"diffgan: error: {tmp_path / 'run'}: another fit is running in this folder")
    assert set(contents(tmp_path / "run")) == before and child.is_alive()
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    main(["fit", "-c", path, "--model.init_args.images", "8"])


def test_two_processes_are_refused_together(saving_config, tmp_path):
    """By the first process alone, before anything is written."""
    lock = FolderLock(tmp_path / "run", "fit")
    words = ["fit", "-c", write(tmp_path / "fit.yaml", saving_config), "-c", "configs/strategies/ddp.yaml"]
    exits = run_on_two_processes([*words, "--trainer.devices", "2"], errors=tmp_path / "errors")
    lock.release()
    assert exits == [1, 1] and os.listdir(tmp_path / "run") == ["fit.lock"]
    lines = [line for line in (tmp_path / "errors").read_text().splitlines() if "diffgan: " in line]
    assert len(lines) == 1 and "another fit is running" in lines[0]


def test_a_broken_checkpoint_is_refused_by_two_processes(saving_config, tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "last.ckpt").write_bytes(b"weights")
    words = ["fit", "-c", write(tmp_path / "fit.yaml", saving_config), "-c", "configs/strategies/ddp.yaml"]
    exits = run_on_two_processes([*words, "--trainer.devices", "2"], errors=tmp_path / "errors")
    assert exits == [1, 1]
    lines = [line for line in (tmp_path / "errors").read_text().splitlines() if "error: " in line]
    assert len(lines) == 1 and f"{folder / 'last.ckpt'}: the checkpoint is broken" in lines[0]


@pytest.mark.slow
def test_processes_that_lightning_starts_share_the_folder(saving_config, tmp_path):
    """Children of a fit do not refuse themselves, and hear of its refusal."""
    path = write(tmp_path / "fit.yaml", saving_config)
    words = [sys.executable, "-m", "diffgan", "fit", "-c", path, "-c", "configs/strategies/ddp.yaml"]
    words += ["--trainer.devices", "2"]
    subprocess.run(words, check=True, timeout=250)
    assert checkpoint(tmp_path / "run")["images_seen"] == 48
    (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    result = subprocess.run(words, capture_output=True, text=True, timeout=250)
    lines = [line for line in result.stderr.splitlines() if "error: " in line]
    assert result.returncode == 1 and len(lines) == 1 and "the checkpoint is broken" in lines[0]


# ---- the best validation ----


def test_best_checkpoint_is_that_of_the_lowest_value(saving_config, tmp_path, capsys):
    """Also after a resume, which ends as the uninterrupted run; `export`, `test` and `fit` take it by name."""
    saving_config["model"]["init_args"]["generator_optimizer"]["init_args"]["lr"] = 0.05
    saver(saving_config).update(monitor="validation/mse", every_images=24)
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])
    logged = {step: values.pop() for (name, step), values in curves(tmp_path / "run").items() if name.endswith("/mse")}
    lowest = min(logged, key=logged.get)
    assert len(logged) == 6 and logged[lowest] < max(logged.values())
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    state = {"monitor": "validation/mse", "best": pytest.approx(logged[lowest])}
    assert best["images_seen"] == lowest and best["callbacks"]["ImageCheckpoint"] == state
    assert checkpoint(tmp_path / "run")["callbacks"]["ImageCheckpoint"] == state

    resumed = named(saving_config, "resumed")
    for images in (16, 32, 48):  # ends of an epoch too
        resumed["model"]["init_args"]["images"] = images
        main(["fit", "-c", write(tmp_path / "resumed.yaml", resumed)])
    assert_same_weights(tmp_path / "run", tmp_path / "resumed")
    assert_same_optimizers(tmp_path / "run", tmp_path / "resumed")
    again = torch.load(tmp_path / "resumed" / "checkpoints" / "best.ckpt", weights_only=True)
    assert again["images_seen"] == lowest
    assert all(torch.equal(weight, again["state_dict"][name]) for name, weight in best["state_dict"].items())

    saving_config["trainer"]["callbacks"].append({"class_path": "callbacks.run_report.RunReport"})
    path = write(tmp_path / "fit.yaml", saving_config)
    main(["test", "-c", path, "--ckpt_path", "best"])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["checkpoint"]["name"] == "best.ckpt"
    main(["export", str(tmp_path / "run"), str(tmp_path / "student"), "--checkpoint", "best"])
    assert "one of last, previous, best, good" in refused(
        capsys, "export", tmp_path / "run", tmp_path / "other", "--checkpoint", "first"
    )
    main(["fit", "-c", path, "--ckpt_path", "best"])
    assert_same_weights(tmp_path / "run", tmp_path / "resumed")


def test_a_checkpoint_without_a_best_value_resumes_with_one(saving_config, tmp_path):
    """An older one; and one of another folder, whose best checkpoint is not here."""
    saving_config["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "fit.yaml", saving_config)])
    file = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert "ImageCheckpoint" not in checkpoint(tmp_path / "run")["callbacks"]
    saver(saving_config)["monitor"] = "validation/mse"
    for name, images in (("second", 16), ("third", 24)):
        following = named(saving_config, name)
        following["model"]["init_args"]["images"] = images
        main(["fit", "-c", write(tmp_path / f"{name}.yaml", following), "--ckpt_path", str(file)])
        file = tmp_path / name / "checkpoints" / "last.ckpt"
        assert torch.load(file.with_name("best.ckpt"), weights_only=True)["images_seen"] == images


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        ("validation/nothing", "measured: validation/mse, validation/regression"),
        ("evaluation/fid", "no evaluation runs during a fit"),
        ("g/regression", "is a curve of the training"),
    ],
)
def test_a_monitor_that_is_never_measured_is_refused(saving_config, tmp_path, capsys, monitor, message):
    saver(saving_config)["monitor"] = monitor
    (line,) = refused(capsys, "fit", "-c", write(tmp_path / "fit.yaml", saving_config)).splitlines()
    assert f"ImageCheckpoint: monitor {monitor}" in line and message in line
