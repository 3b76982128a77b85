"""What the trainer adds to the networks: `make bench` prints two ratios, each measured in turn in one process."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch as pl
import torch
from diffusers import DDIMScheduler

from callbacks.ema import EMA
from callbacks.pair_writer import PairWriter
from datamodules.latent_pairs import LatentPairs
from datamodules.prompts import Prompts
from diffgan.distillation import Diffusion2GAN
from diffgan.generation import PairGeneration
from diffgan.perceptual.lpips import ELatentLPIPS
from diffgan.regression import Perceptual

PROMPTS, STEPS, GUIDANCE, BATCH, PAIRS = Path("configs/glyphs/prompts.txt"), 10, 3.0, 50, 200
QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


# ---- pairs ----


class Stopwatch(pl.Callback):
    """Seconds of a whole prediction, the start of the trainer aside."""

    def on_predict_start(self, trainer, pl_module) -> None:
        self.start = time.perf_counter()

    def on_predict_end(self, trainer, pl_module) -> None:
        self.seconds = time.perf_counter() - self.start


def generation_seconds(module: PairGeneration) -> float:
    """The whole stage: prompts, noise, solver, shards on disk."""
    with tempfile.TemporaryDirectory() as folder:
        return write_pairs(module, Path(folder))


def write_pairs(module: PairGeneration, folder: Path) -> float:
    watch = Stopwatch()
    callbacks = [watch, PairWriter(folder, shard_size=100)]
    trainer = pl.Trainer(accelerator="auto", devices=1, callbacks=callbacks, default_root_dir=folder, **QUIET)
    trainer.predict(module, Prompts(PROMPTS, PAIRS, seed_base=0, batch_size=BATCH), return_predictions=False)
    return watch.seconds


@torch.no_grad()
def bare_loop(module: PairGeneration) -> None:
    """Network and scheduler, nothing else."""
    teacher = module.teacher
    latents = torch.randn(PAIRS, *teacher.latent_shape).split(BATCH)
    conditioning = teacher.encode(["", "digit 7"]).text.repeat_interleave(BATCH, 0)
    for latent in latents:
        scheduler = DDIMScheduler.from_config(teacher.scheduler.config)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            both = teacher.unet(torch.cat([latent, latent]), t, encoder_hidden_states=conditioning).sample
            unconditional, conditional = both.chunk(2)
            guided = unconditional + GUIDANCE * (conditional - unconditional)
            latent = scheduler.step(guided, t, latent).prev_sample


# ---- training ----


class Clock(pl.Callback):
    """Seconds from the first batch's start to the last one's end, the loader's time included."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:  # the first two warm up
            self.start, self.first = time.perf_counter(), batch_idx

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx > 2:
            self.per_batch = (time.perf_counter() - self.start) / (batch_idx + 1 - self.first)


def training_step_seconds(folder: Path, batch_size: int, batches: int) -> float:
    """Seconds a batch of `trainer.fit`."""
    module = distillation(images=batch_size * batches)
    clock = Clock()
    trainer = pl.Trainer(
        accelerator="auto", devices=1, max_epochs=-1, limit_val_batches=0, callbacks=[EMA(1000.0), clock], **QUIET
    )
    trainer.fit(module, LatentPairs(folder, batch_size, validation_pairs=0))
    return clock.per_batch


def bare_passes_seconds(folder: Path, batch_size: int, batches: int) -> float:
    """Seconds of text encoder, generator, perceptual network and backward, on one batch."""
    module = distillation(images=1)
    module.configure_model()
    data = LatentPairs(folder, batch_size, validation_pairs=0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))

    def passes() -> None:
        generated = module.generator(batch.noise, module.teacher.encode(batch.prompt))
        module.regression(generated, batch.latent).mean().backward()
        module.generator.zero_grad()

    for _ in range(2):
        passes()
    return statistics.fmean(seconds(passes) for _ in range(batches - 2))


def distillation(images: int) -> Diffusion2GAN:
    def optimizer(parameters):
        return torch.optim.AdamW(parameters, 1e-4, fused=True)

    return Diffusion2GAN("glyphs", Perceptual(ELatentLPIPS(Path("glyphs"))), optimizer, images)


def main() -> None:
    torch.manual_seed(0)
    module = PairGeneration("glyphs", STEPS, GUIDANCE)
    pairs = statistics.median(generation_seconds(module) / seconds(lambda: bare_loop(module)) for _ in range(3))
    print(f"pair generation / bare denoising loop     {pairs:.3f}   (aim: at most 1.03)", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(module, Path(folder))
        ratios = [
            training_step_seconds(Path(folder), 16, 12) / bare_passes_seconds(Path(folder), 16, 12) for _ in range(3)
        ]
    print(f"training step / sum of its network passes {statistics.median(ratios):.3f}   (aim: at most 1.08)")


if __name__ == "__main__":
    main()
