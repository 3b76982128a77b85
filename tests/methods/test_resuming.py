"""Resuming an adversarial training: after kills and signals, from regression, from broken checkpoints."""

import gc
import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from callbacks.run_folder import run_folder
from diffgan.__main__ import main
from tests.processes import run_on_two_processes, start, start_two_processes
from tests.runs import (
    adversarial_settings,
    assert_same_weights,
    checkpoint,
    curves,
    named,
    refused,
    use_large_adam_eps,
    write,
)


def kill_somewhere(words, folder, seconds):
    """SIGKILL some time after the first checkpoint."""
    child = start(words)
    last = folder / "checkpoints" / "last.ckpt"
    while not last.exists() and child.is_alive():
        time.sleep(0.01)
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_run_killed_three_times_equals_the_uninterrupted_run(adversarial_config, tmp_path):
    """Weights, averages, both optimizers and every logged loss are equal to the bit."""
    adversarial_config["model"]["init_args"]["images"] = 240
    adversarial_settings(adversarial_config).update(starts_at_images=40, warmup_images=80, input_noise=0.1)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    path = write(tmp_path / "killed.yaml", named(adversarial_config, "killed"))
    for seconds in (0.05, 0.4, 0.9):
        kill_somewhere(["fit", "-c", path], tmp_path / "killed", seconds)
    main(["fit", "-c", path])
    assert_same_weights(tmp_path / "run", tmp_path / "killed")
    whole, broken = (checkpoint(tmp_path / name)["optimizer_states"] for name in ("run", "killed"))
    for one, two in zip(whole, broken, strict=True):
        for i, state in one["state"].items():
            assert all(torch.equal(value, two["state"][i][name]) for name, value in state.items())
    expected, logged = curves(tmp_path / "run"), curves(tmp_path / "killed")
    assert len(logged) > 0.9 * len(expected)  # a kill loses what was logged after a checkpoint and not yet on disk
    assert logged == {point: expected[point] for point in logged}


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "kills"), [(1, 10), (2, 5)])
def test_run_killed_at_random_equals_the_uninterrupted_run(adversarial_config, tmp_path, processes, kills):
    """Equal to the bit on one process, within rounding on two."""
    adversarial_config["model"]["init_args"]["images"] = 640 if processes == 1 else 320
    adversarial_config["trainer"]["callbacks"][1]["init_args"]["every_images"] = 32
    use_large_adam_eps(adversarial_config)
    run = (lambda words: main(words) or [0]) if processes == 1 else run_on_two_processes
    strategy = [] if processes == 1 else ["-c", "configs/strategies/ddp.yaml", "--trainer.devices", "2"]
    assert run(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config), *strategy]) == [0] * processes
    words = ["fit", "-c", write(tmp_path / "killed.yaml", named(adversarial_config, "killed")), *strategy]
    random = torch.Generator().manual_seed(0)
    for _ in range(kills):
        seconds = torch.rand((), generator=random).item() * (2 if processes == 1 else 6)
        if processes == 1:
            kill_somewhere(words, tmp_path / "killed", seconds)
        else:
            kill_both(words, tmp_path / "killed", seconds)
    assert run(words) == [0] * processes
    exact = processes == 1
    assert_same_weights(
        tmp_path / "run", tmp_path / "killed", exactly=exact, **({} if exact else {"atol": 1e-5, "rtol": 1e-4})
    )


def kill_both(words, folder, seconds):
    """SIGKILL to two processes some time after the first checkpoint."""
    ranks = start_two_processes(words)
    last = folder / "checkpoints" / "last.ckpt"
    while not last.exists() and all(rank.is_alive() for rank in ranks):
        time.sleep(0.01)
    time.sleep(seconds)
    for rank in ranks:
        os.kill(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.join()


def test_regression_resumes_with_a_discriminator(adversarial_config, tmp_path, capsys):
    """A checkpoint without discriminator: D starts from scratch. The other direction is refused."""
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    alone = named(adversarial_config, "alone")
    del alone["model"]["init_args"]["adversarial"]
    alone["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "alone.yaml", alone)])
    before = str(tmp_path / "alone" / "checkpoints" / "last.ckpt")
    main(["fit", "-c", write(tmp_path / "joined.yaml", named(adversarial_config, "joined")), "--ckpt_path", before])
    assert_same_weights(tmp_path / "run", tmp_path / "joined")
    after = tmp_path / "run" / "checkpoints" / "last.ckpt"
    refusal = refused(capsys, "fit", "-c", tmp_path / "alone.yaml", "--ckpt_path", after)
    assert "another model" in refusal and "discriminator" in refusal


def test_regression_resumes_with_a_discriminator_sharded(adversarial_config, tmp_path):
    """D starts from scratch; a discriminator of another shape is refused by every process in one line."""
    use_large_adam_eps(adversarial_config)
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    alone = named(adversarial_config, "alone")
    del alone["model"]["init_args"]["adversarial"]
    alone["model"]["init_args"]["images"] = 8
    main(["fit", "-c", write(tmp_path / "alone.yaml", alone)])
    joined = write(tmp_path / "joined.yaml", named(adversarial_config, "joined"))
    words = ["fit", "-c", joined, "-c", "configs/strategies/fsdp.yaml", "--trainer.devices", "2", "--ckpt_path"]
    assert run_on_two_processes([*words, str(tmp_path / "alone" / "checkpoints" / "last.ckpt")]) == [0, 0]
    assert_same_weights(tmp_path / "run", tmp_path / "joined", exactly=False, atol=5e-6, rtol=1e-4)
    smaller = "--model.init_args.adversarial.init_args.discriminator.init_args.multi_scale"
    words = [*words, str(tmp_path / "run" / "checkpoints" / "last.ckpt"), smaller, "false"]
    assert run_on_two_processes(words, errors=tmp_path / "errors") == [1, 1]
    error = (tmp_path / "errors").read_text()
    assert "another model: discriminator" in error and "Traceback" not in error


class MappedFile(pl.Callback):
    """Checks that a checkpoint is read from its file where it is needed, and that nothing of it is used afterwards."""

    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        assert self._is_mapped(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        gc.collect()  # Lightning leaves circles of references
        assert not self._is_mapped(trainer)

    def _is_mapped(self, trainer):
        return str(run_folder(trainer) / "checkpoints" / "last.ckpt") in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("strategy", [None, "fsdp"])
def test_a_checkpoint_is_mapped_and_not_kept(adversarial_config, tmp_path, strategy):
    """A kept tensor would keep the file's space on the disk after the file has been replaced."""
    adversarial_config["trainer"]["callbacks"].append({"class_path": "tests.methods.test_resuming.MappedFile"})
    words = ["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)]
    if strategy:
        words += ["-c", f"configs/strategies/{strategy}.yaml", "--trainer.devices", "1"]
    main([*words, "--model.init_args.images", "16"])
    main([*words, "--model.init_args.images", "24"])
    assert checkpoint(tmp_path / "run")["images_seen"] == 24


def test_settings_of_memory_may_change(adversarial_config, tmp_path):
    """A run that ended out of memory resumes by its own command with more micro-batches and gradient checkpointing."""
    adversarial_config["model"]["init_args"]["images"] = 16
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    adversarial_config["model"]["init_args"] |= {"images": 32, "accumulate": 2, "gradient_checkpointing": True}
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    assert checkpoint(tmp_path / "run")["images_seen"] == 32


def test_checkpoint_without_the_averages_of_the_balance_resumes(adversarial_config, tmp_path):
    """As those of version 0.2: the averages begin with the next step."""
    path = write(tmp_path / "fit.yaml", adversarial_config)
    main(["fit", "-c", path, "--model.init_args.images", "24"])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    old = torch.load(last, weights_only=True)
    assert old.pop("gradient_balance").shape == (2,)
    torch.save(old, last)
    main(["fit", "-c", path])
    averages = checkpoint(tmp_path / "run")["gradient_balance"]
    assert (averages > 0).all() and averages.isfinite().all()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_a_checkpoint_and_exits(adversarial_config, tmp_path, number):
    adversarial_config["model"]["init_args"]["images"] = 100_000
    adversarial_config["trainer"]["callbacks"][1]["init_args"]["every_images"] = 4000
    adversarial_config["trainer"]["val_check_interval"] = 3
    path = write(tmp_path / "fit.yaml", adversarial_config)
    child = start(["fit", "-c", path])
    while not list((tmp_path / "run").glob("samples/*.png")) and child.is_alive():
        time.sleep(0.05)
    os.kill(child.pid, number)
    child.join(60)
    assert child.exitcode == 128 + number
    seen = checkpoint(tmp_path / "run")["images_seen"]
    adversarial_config["model"]["init_args"]["images"] = seen + 16
    main(["fit", "-c", write(tmp_path / "fit.yaml", adversarial_config)])
    assert checkpoint(tmp_path / "run")["images_seen"] == seen + 16


def test_broken_checkpoint_is_named_and_the_previous_one_offered(adversarial_config, tmp_path, capsys):
    path = write(tmp_path / "fit.yaml", adversarial_config)
    main(["fit", "-c", path])
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    whole = last.read_bytes()
    middle = whole.index(b"archive/data/") + len(whole) // 3
    flipped = whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 64]) + whole[middle + 64 :]
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    for damaged in (whole[:-1000], flipped, (tmp_path / "other.ckpt").read_bytes()):
        last.write_bytes(damaged)
        refusal = refused(capsys, "fit", "-c", path)
        assert str(last) in refusal and "broken" in refusal and "--ckpt_path previous" in refusal
    main(["fit", "-c", path, "--ckpt_path", "previous"])
    assert (last.parent / "broken.ckpt").exists()
    assert checkpoint(tmp_path / "run")["images_seen"] == 48
