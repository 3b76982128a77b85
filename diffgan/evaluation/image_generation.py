"""Images of prompts without a protocol, for the benchmarks that score them by their own tools."""

import time

import torch

from diffgan.evaluation.samplers import Sampler
from diffgan.evaluation.saved_images import SavedImages
from diffgan.evaluation.work_split import WorkSplit
from diffgan.images import finite_uint8
from diffgan.noise import draw_noise


@torch.no_grad()
def save_images_of_prompts(
    sampler: Sampler, saved: SavedImages, batch_size: int, split: WorkSplit
) -> dict[str, float | str]:
    """Generate the images that a folder lacks; every process generates its own batches of prompts (collective).

    Args:
        sampler: the pipeline.
        saved: the folder.
        batch_size: images at once, of one process; at least those of one prompt.
        split: this process's place among all.

    Returns:
        images, the number of all in the folder; seconds_per_image of generation on this process, if it has generated
        any; protocol and protocol_digest, of prompts and seeds.
    """
    layout, seconds, generated = saved.layout, 0.0, 0
    batches = split.batches(len(layout.prompts), max(1, batch_size // layout.per_prompt))
    for numbers in split.progress(batches, "evaluate: generating"):
        if saved.are_complete(numbers):
            continue
        prompts = [layout.prompts[number] for number in numbers for _ in range(layout.per_prompt)]
        seeds = [seed for number in numbers for seed in layout.seeds(number)]
        start = time.perf_counter()
        images = sampler.images(draw_noise(seeds, sampler.latent_shape), prompts, seeds)
        images = finite_uint8(images, prompts, seeds).cpu()
        seconds, generated = seconds + time.perf_counter() - start, generated + len(seeds)
        saved.write(numbers, images)
    saved.finish()
    names = {key: saved.record[key] for key in ("protocol", "protocol_digest")}
    speed = {"seconds_per_image": seconds / generated} if generated else {}
    return {"images": float(saved.images), **names, **speed}
