"""Overhead of the trainer over the bare networks: two ratios, the sides of each measured in turn in one process."""

import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import lightning.pytorch as pl
import torch
from diffusers import DDIMScheduler

from callbacks.ema import EMA
from callbacks.pair_writer import PairWriter
from datamodules.latent_pairs import LatentPairs
from datamodules.prompts import Prompts
from diffgan.losses.regression import Perceptual
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.generation import PairGeneration
from diffgan.perceptual.lpips import ELatentLPIPS

PROMPTS, STEPS, GUIDANCE, BATCH, PAIRS = Path("configs/glyphs/prompts.txt"), 10, 3.0, 50, 200
TRAINING_BATCH = 16
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ---- pairs ----


class Stopwatch(pl.Callback):
    """Seconds of a whole prediction, without the start of the trainer."""

    def on_predict_start(self, trainer, pl_module) -> None:
        self.start = time.perf_counter()

    def on_predict_end(self, trainer, pl_module) -> None:
        self.seconds = time.perf_counter() - self.start


def generation_seconds(module: PairGeneration) -> float:
    """Seconds of the whole stage: prompts, noise, solver, shards on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return write_pairs(module, Path(folder))


def write_pairs(module: PairGeneration, folder: Path, pairs: int = PAIRS) -> float:
    """Write a pair set; the seconds it took."""
    stopwatch = Stopwatch()
    callbacks = [stopwatch, PairWriter(folder, shard_size=100)]
    trainer = pl.Trainer(accelerator="auto", devices=1, callbacks=callbacks, default_root_dir=folder, **QUIET)
    trainer.predict(module, Prompts(PROMPTS, pairs, seed_base=0, batch_size=BATCH), return_predictions=False)
    return stopwatch.seconds


@torch.no_grad()
def bare_loop(module: PairGeneration) -> None:
    """The denoising loop alone: network and scheduler."""
    teacher = module.teacher
    latents = torch.randn(PAIRS, *teacher.latent_shape).split(BATCH)
    conditioning = teacher.encode(["", "digit 7"]).text.repeat_interleave(BATCH, 0)
    for latent in latents:
        scheduler = DDIMScheduler.from_config(teacher.scheduler.config)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            both = teacher.denoiser(torch.cat([latent, latent]), t, encoder_hidden_states=conditioning).sample
            unconditional, conditional = both.chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            latent = scheduler.step(guided, t, latent).prev_sample


# ---- training ----

WARM_UP = 2  # batches


class InTurn(pl.Callback):
    """Runs the bare passes after every batch of a training, so that both are measured on the same busy machine.

    A batch lasts from the end of the passes before it to its own end, which includes the loader's and trainer's time.
    """

    def __init__(self, passes: Callable[[int], None]):
        self.passes, self.batch, self.bare = passes, 0.0, 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ended = time.perf_counter()
        bare = seconds(lambda: self.passes(batch_idx))
        if trainer.fit_loop.total_batch_idx >= WARM_UP:
            self.batch += ended - self.resumed
            self.bare += bare
        self.resumed = time.perf_counter()


def regression_passes(folder: Path) -> Callable[[int], None]:
    """Text encoder, generator, perceptual network and backward, on one batch."""
    module = distillation(images=1)
    module.configure_model()
    batch = first_batch(folder)

    def passes(_: int) -> None:
        generated = module.generator(batch.noise, module.teacher.encode(batch.prompt))
        module.regression(generated, batch.latent).mean().backward()
        module.generator.zero_grad()

    return passes


@contextlib.contextmanager
def training_pairs() -> Iterator[Path]:
    """A folder of pairs made in one step, enough for epochs of 50 batches."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(PairGeneration("glyphs", 1, 1.0), Path(folder), 50 * TRAINING_BATCH)
        yield Path(folder)


def first_batch(folder: Path) -> PairBatch:
    data = LatentPairs(folder, TRAINING_BATCH, validation_pairs=0)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def training_ratio(module: Diffusion2GAN, passes: Callable[[int], None], folder: Path) -> float:
    """Seconds per batch of `trainer.fit` over those of its bare passes."""
    timer = InTurn(passes)
    fit(module, folder, timer)
    return timer.batch / timer.bare


def fit(module: Diffusion2GAN, folder: Path, callback: pl.Callback) -> None:
    limits = {"accelerator": "auto", "devices": 1, "max_epochs": -1, "limit_val_batches": 0}
    trainer = pl.Trainer(**limits, callbacks=[EMA(1000.0), callback], **QUIET)
    trainer.fit(module, LatentPairs(folder, TRAINING_BATCH, validation_pairs=0))


def distillation(images: int) -> Diffusion2GAN:
    def optimizer(parameters):
        return torch.optim.AdamW(parameters, 1e-4, fused=True)

    return Diffusion2GAN("glyphs", Perceptual(ELatentLPIPS(Path("glyphs"))), optimizer, images)


def main() -> None:
    torch.manual_seed(0)
    module = PairGeneration("glyphs", STEPS, GUIDANCE)
    pairs = statistics.median(generation_seconds(module) / seconds(lambda: bare_loop(module)) for _ in range(3))
    print(f"pair generation / bare denoising loop     {pairs:.3f}   (aim: at most 1.03)", flush=True)
    with training_pairs() as folder:
        images = TRAINING_BATCH * (WARM_UP + 40)
        ratios = [training_ratio(distillation(images), regression_passes(folder), folder) for _ in range(5)]
    print(f"training step / sum of its network passes {statistics.median(ratios):.3f}   (aim: at most 1.08)")


if __name__ == "__main__":
    main()
