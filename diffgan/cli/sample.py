"""The verb `sample`: images of prompts, from a student in one step or a teacher in many."""

import re
from pathlib import Path

import torch
from PIL import Image

from diffgan.errors import UserError
from diffgan.images import finite_uint8
from diffgan.noise import draw_noise
from diffgan.teachers.registry import load_teacher


@torch.no_grad()
def sample(
    prompts: list[str],
    student: str = "glyphs",
    output: Path = Path("samples"),
    steps: int = 1,
    guidance: float = 1.0,
    count: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> list[Path]:
    """Generate images of prompts and write them as `<output>/<number>-<prompt>.png`.

    Args:
        prompts: texts, e.g. "a bold serif capital A in dark red on cream".
        student: pipeline directory (an exported student, or any teacher with more steps), hub id or "glyphs".
        output: folder of the images.
        steps: network calls per image, at least 1; 1 for a student.
        guidance: scale of classifier-free guidance; 1 (none) for a student.
        count: images per prompt, at least 1.
        seed: the noise of image i is drawn from seed + i.
        device: e.g. "cuda".

    Returns:
        The files in the order of the prompts.

    Raises:
        UserError: a setting is out of range, the pipeline cannot be loaded, or an image is not finite.
    """
    if not prompts or count < 1:
        raise UserError("sample: give at least one prompt and count 1 or more")
    pipeline = load_teacher(student).to(device)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    seeds = range(seed, seed + len(repeated))
    noise = draw_noise(seeds, pipeline.latent_shape).to(device)
    latents = pipeline.solve(noise, pipeline.encode(repeated), steps, guidance)
    images = finite_uint8(pipeline.decode(latents), repeated, seeds)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{i:03d}-{_slug(prompt)}.png" for i, prompt in enumerate(repeated)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)
        print(path)
    return paths


def _slug(prompt: str) -> str:
    """The prompt as part of a file name: letters, digits and dashes, at most 60 characters."""
    words = re.findall(r"[^\W_]+", prompt)
    return "-".join(words)[:60] or "empty"
