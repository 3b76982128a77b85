"""The verb `sample`: images of prompts, from a student in one step or a teacher in many."""

import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffgan.errors import UserError
from diffgan.images import finite_uint8, png_bytes
from diffgan.noise import draw_noise, require_seeds
from diffgan.numbers import require, require_guidance
from diffgan.prompts.limits import require_prompts
from diffgan.storage.atomic import write_atomic
from diffgan.storage.outputs import require_folder_place
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher
from diffgan.training.devices import require_device

MOST_IMAGES = 1000  # of one call; they are in memory together until all are made
AT_ONCE = 16  # images
NO_STUDENT = (
    "--student: name the student's directory, which diffgan export RUN DIR writes; for images of the glyphs' teacher: "
    "--student glyphs --steps 20 --guidance 3"
)


def sample(
    prompts: list[str],
    student: str | None = None,
    output: Path = Path("samples"),
    steps: int = 1,
    guidance: float = 1.0,
    count: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> list[Path]:
    """Generate images of prompts and write them as `<output>/<number>-<prompt>.png`.

    Args:
        prompts: texts of at most 10,000 characters, e.g. "a bold serif capital A in dark red on cream".
        student: pipeline directory that `diffgan export` wrote; or a teacher (directory, hub id or "glyphs") with more
            steps, e.g. --student glyphs --steps 20 --guidance 3.
        output: folder of the images.
        steps: network calls per image, at least 1; 1 for a student.
        guidance: scale of classifier-free guidance, at least 0; 1 (none) for a student.
        count: images per prompt, at least 1; at most 1000 images in all.
        seed: the noise of image i is drawn from seed + i.
        device: e.g. "cuda".

    Returns:
        The files in the order of the prompts.

    Raises:
        UserError: a setting is out of range, the pipeline cannot be loaded, or an image is not finite.
    """
    _check_numbers(prompts, steps, guidance, count, seed)
    if student is None:
        raise UserError(NO_STUDENT)
    place = require_device("--device", device)
    require_folder_place(output)
    pipeline = load_teacher(student).to(place)
    pipeline.solver(steps)
    repeated = [prompt for prompt in prompts for _ in range(count)]
    images = _images(pipeline, repeated, seed, steps, guidance)
    paths = [output / f"{i:03d}-{_slug(prompt)}.png" for i, prompt in enumerate(repeated)]
    for path, image in zip(paths, images, strict=True):
        write_atomic(path, png_bytes(Image.fromarray(image.permute(1, 2, 0).numpy())))
        print(path)
    return paths


def _check_numbers(prompts: list[str], steps: int, guidance: float, count: int, seed: int) -> None:
    """Raises: UserError naming what is out of range."""
    require_prompts("sample", prompts)
    require("--count", count, least=1)
    require("sample: prompts times --count", len(prompts) * count, most=MOST_IMAGES)
    require("--steps", steps, least=1)
    require_guidance("--guidance", guidance)
    require_seeds("--seed", seed, len(prompts) * count)


@torch.no_grad()
def _images(pipeline: Teacher, prompts: list[str], seed: int, steps: int, guidance: float) -> Tensor:
    """(N, 3, H, W) uint8 on the CPU, one image of each prompt."""
    images = []
    for start in range(0, len(prompts), AT_ONCE):
        some = prompts[start : start + AT_ONCE]
        seeds = range(seed + start, seed + start + len(some))
        noise = draw_noise(seeds, pipeline.latent_shape).to(pipeline.device)
        latents = pipeline.solve(noise, pipeline.encode(some), steps, guidance)
        images.append(finite_uint8(pipeline.decode(latents), some, seeds).cpu())
    return torch.cat(images)


def _slug(prompt: str) -> str:
    """The prompt as part of a file name: letters, digits and dashes, at most 60 characters."""
    words = re.findall(r"[^\W_]+", prompt)
    return "-".join(words)[:60] or "empty"
