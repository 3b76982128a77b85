"""Speed of pair generation against a plain loop over diffusers' `pipe()` that writes one file per pair."""

import statistics
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from datamodules.prompts import Prompts
from diffgan.pairs.generation import PairGeneration
from diffgan.teachers.registry import resolve_path
from diffgan.teachers.schedule import SCHEDULER_SETTINGS
from tests.bench.overhead import BATCH, GUIDANCE, PAIRS, PROMPTS, STEPS, generation_seconds, seconds


def pipeline(teacher: str, device: torch.device) -> StableDiffusionPipeline:
    """The same network, scheduler and precision, as diffusers loads it."""
    path = resolve_path(teacher)
    pipe = StableDiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32, safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **SCHEDULER_SETTINGS)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def plain_loop(pipe: StableDiffusionPipeline, data: Prompts, folder: Path) -> None:
    """A generator per seed, prompts in batches, a file per pair."""
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "latent"}
    for start in range(0, PAIRS, BATCH):
        batch = data.batch(range(start, start + BATCH))
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seed.tolist()]
        latents = pipe(batch.prompt, generator=generators, **options).images
        for seed, prompt, latent in zip(batch.seed.tolist(), batch.prompt, latents, strict=True):
            save_file({"latent": latent.half().cpu().clone()}, folder / f"{seed}.safetensors", {"prompt": prompt})


def plain_seconds(pipe: StableDiffusionPipeline, data: Prompts) -> float:
    with tempfile.TemporaryDirectory() as folder:
        return seconds(lambda: plain_loop(pipe, data, Path(folder)))


def speedup(module: PairGeneration, pipe: StableDiffusionPipeline, data: Prompts) -> float:
    """Seconds of the plain loop over those of pair generation: the median of three turns."""
    generation_seconds(module)  # loads, compiles, warms up
    return statistics.median(plain_seconds(pipe, data) / generation_seconds(module) for _ in range(3))


def main() -> None:
    data = Prompts(PROMPTS, PAIRS, seed_base=0, batch_size=BATCH)
    data.setup("predict")
    pipe = pipeline("glyphs", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    for name, compiled in (("not compiled", False), ("compiled", True)):
        ratio = speedup(PairGeneration("glyphs", STEPS, GUIDANCE, compile=compiled), pipe, data)
        print(f"loop over pipe(), one file per pair / pair generation, {name}   {ratio:.3f}", flush=True)
    print("(aim: at least 1.2 compiled; without the compiler's own time at each start)")


if __name__ == "__main__":
    main()
