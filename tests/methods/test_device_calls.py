"""What a training step and the solver make the host of a GPU wait for, counted on networks without values."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch

from callbacks.ema import EMA
from datamodules.latent_pairs import LatentPairs
from diffgan.losses.regression import Perceptual
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import ELatentLPIPS
from diffgan.perceptual.weights import PerceptualWeights, save_weights
from diffgan.teachers.registry import load_teacher
from tests.bench.device_calls import DEVICE, DeviceCalls, on_device

READS_CURVES = "diffgan/methods/base.py: numbers = "  # their points that are due, at once


class Recorder(pl.Callback):
    """What each batch waits for."""

    def __init__(self, calls: DeviceCalls):
        self.calls, self.batches = calls, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.batches:  # the transfer of the batch counts; the start of the first one does not
            return
        self.calls.reset()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches.append(dict(self.calls.waits))
        self.calls.reset()


@pytest.fixture
def distance(tiny_pipeline, tmp_path):
    space = load_teacher(str(tiny_pipeline)).space
    save_weights(tmp_path / "vgg.safetensors", PerceptualWeights(LatentVGG16(space.channels, 0.125), space))
    return ELatentLPIPS(tmp_path / "vgg.safetensors", "bgcno")


def test_a_training_step_waits_for_nothing_but_its_curves(distance, tiny_pipeline, pairs, tmp_path):
    """After the first batch, with every kind of random number: a batch without R1, and one with it."""
    optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    adversarial = AdversarialTraining(MultiScaleDiscriminator, optimizer, r1_every=2, input_noise=0.1)
    module = Diffusion2GAN(str(tiny_pipeline), Perceptual(distance), optimizer, 24, adversarial=adversarial)
    calls = DeviceCalls()
    recorder = Recorder(calls)
    trainer = pl.Trainer(
        **on_device(),
        max_epochs=-1,
        limit_val_batches=0,
        log_every_n_steps=5,
        callbacks=[EMA(1000.0), recorder],
        default_root_dir=tmp_path,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with calls:
        trainer.fit(module, LatentPairs(pairs, 8, validation_pairs=0))
    _, without_r1, with_r1 = recorder.batches
    assert without_r1 == {}
    assert [(kind, place.startswith(READS_CURVES), count) for (kind, place), count in with_r1.items()] == [
        ("read", True, 1)
    ]


@pytest.mark.parametrize("solver", ["DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_a_solver_never_waits(solver, tiny_pipeline):
    teacher = load_teacher(str(tiny_pipeline)).to(DEVICE)
    noise = torch.empty(2, *teacher.latent_shape, device=DEVICE)
    with DeviceCalls() as calls:
        conditioning = teacher.encode(["digit 7", "digit 7"])
        latent = teacher.solve(noise, conditioning, 4, guidance=2.0, solver=solver)
    assert latent.device == DEVICE
    assert not calls.waits


def test_the_counter_sees_what_a_gpu_waits_for():
    values = torch.empty(4, device=DEVICE)
    waits = {
        "item": lambda: values.sum().item(),
        "condition": lambda: bool((values > 0).any()),
        "to the CPU": lambda: values.cpu(),
        "mask": lambda: values[values > 0],
        "indices": lambda: values.nonzero(),
        "numbers": lambda: torch.tensor([1.0, 2.0], device=DEVICE),
        "indices of Python": lambda: values[[0, 1]],
        "indices on the CPU": lambda: values[torch.tensor([0, 1])],
        "memory that is not pinned": lambda: torch.ones(3).to(DEVICE),
    }
    for name, wait in waits.items():
        with DeviceCalls() as calls:
            wait()
        assert calls.waits, name
    with DeviceCalls() as calls:
        torch.ones(3).to(DEVICE, non_blocking=True)
        values[torch.arange(2, device=DEVICE)] * torch.ones(())
    assert not calls.waits and sum(calls.kernels.values()) == 3
