"""Short trainings on random pairs in memory, through the trainer as a user's run is."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import move_data_to_device
from torch.utils.data import DataLoader

from callbacks.ema import EMA
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.pairs.batch import PairBatch
from diffgan.teachers.base import Teacher
from tests.bench.adversarial_step import network_passes
from tests.bench.overhead import QUIET
from tests.gpu.networks import random_conditioning, random_latents
from tests.gpu.parts import Setting
from tests.gpu.timing import mark, median_seconds, peak_gb, reset_peak, seconds_between

PROMPT = "digit 7"
SET = 64  # pairs that are read again and again
WARM_UP = 1  # batches; the first has the gradient penalty


class RandomPairs:
    """Random pairs in memory, as far as a distillation reads a `PairSet`.

    Args:
        cached: with random conditioning, as cached embeddings.
    """

    def __init__(self, teacher: Teacher, cached: bool = True):
        self.noise, self.latent = random_latents(teacher, SET), random_latents(teacher, SET)
        self.conditioning = random_conditioning(teacher, SET) if cached else None

    def __len__(self) -> int:
        return SET

    def read(self, numbers: Sequence[int]) -> PairBatch:
        """The pairs of these numbers."""
        rows = torch.tensor(numbers) % SET
        text = None if self.conditioning is None else self.conditioning.map(lambda tensor: tensor[rows])
        return PairBatch(rows, self.noise[rows], [PROMPT] * len(rows), self.latent[rows], text)


class RandomPairData(pl.LightningDataModule):
    """Batches of `pairs`, without end, in pinned memory where there is a GPU, as `LatentPairs` has them."""

    def __init__(self, pairs: RandomPairs, batch_size: int):
        super().__init__()
        self.pairs, self.batch_size = pairs, batch_size

    def train_dataloader(self) -> DataLoader:
        options = {"batch_size": None, "collate_fn": lambda batch: batch, "pin_memory": torch.cuda.is_available()}
        return DataLoader(_Batches(self.pairs, self.batch_size), **options)


class _Batches(torch.utils.data.Dataset):
    def __init__(self, pairs: RandomPairs, size: int):
        self.pairs, self.size = pairs, size

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, i: int) -> PairBatch:
        return self.pairs.read(range(i * self.size, (i + 1) * self.size))


class Measured(pl.Callback):
    """Seconds and memory of the steps of a training; its networks are freed at the end.

    Args:
        afterwards: called with the module and its newest batch, in the trainer's precision, before they are freed.

    Attributes:
        marks: the ends of the batches.
        peak, later_peak: GB during all batches, and without the first `WARM_UP`; None on a CPU.
        found: what `afterwards` returned.
    """

    def __init__(self, afterwards: Callable[[Diffusion2GAN, PairBatch], Any]):
        self.afterwards, self.marks, self.found = afterwards, [], None
        self.peak = self.later_peak = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: Diffusion2GAN) -> None:
        reset_peak(pl_module.device)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Diffusion2GAN, outputs, batch, batch_idx) -> None:
        self.marks.append(mark(pl_module.device))
        self.batch, self.later_peak = batch, peak_gb(pl_module.device)
        if self.later_peak is not None:
            self.peak = max(self.peak or 0.0, self.later_peak)
        if len(self.marks) == WARM_UP:
            reset_peak(pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Diffusion2GAN) -> None:
        with trainer.precision_plugin.forward_context():
            self.found = self.afterwards(pl_module, self.batch)
        self.free(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Diffusion2GAN, exception: BaseException) -> None:
        self.free(trainer, pl_module)

    def free(self, trainer: pl.Trainer, pl_module: Diffusion2GAN) -> None:
        """Drop weights, gradients and optimizer states, which Lightning would copy to the CPU."""
        self.batch = None
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        for network in (*pl_module.networks.values(), getattr(pl_module, "generator_ema", None)):
            for weight in () if network is None else network.parameters():
                weight.grad, weight.data = None, torch.empty(0)

    def step_seconds(self) -> float:
        """Median seconds of a step, from the end of one batch to that of the next."""
        ends = self.marks[WARM_UP - 1 :]
        seconds = [seconds_between(first, second) for first, second in pairwise(ends)]
        return torch.tensor(seconds).median().item()


def fit(setting: Setting, module: Diffusion2GAN, data: RandomPairData, callbacks: Sequence[pl.Callback]) -> None:
    """Train under bf16-mixed, with a moving average and without checkpoints and validation."""
    accelerator = "gpu" if setting.device.type == "cuda" else "cpu"
    limits = {"accelerator": accelerator, "devices": 1, "max_epochs": -1, "limit_val_batches": 0}
    trainer = pl.Trainer(precision="bf16-mixed", callbacks=[EMA(500_000), *callbacks], **limits, **QUIET)
    trainer.fit(module, data)


def bare_seconds(module: Diffusion2GAN, batch: PairBatch, rounds: int) -> float:
    """Median seconds of the network passes of a step, without anything around them, on the module's own networks."""
    batch = move_data_to_device(batch, module.device)
    conditioning = module.encode(batch)
    return median_seconds(
        lambda: network_passes(module, batch.noise, batch.latent, conditioning), module.device, rounds
    )
