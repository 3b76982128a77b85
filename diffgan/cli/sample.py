"""The verb `sample`: prompts to pictures, with a student in one step or with a teacher in many."""

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
    """Draw pictures of the prompts and write them as `<output>/<number>-<prompt>.png`.

    Args:
        prompts: what to draw, e.g. "a bold serif capital A in dark red on cream".
        student: pipeline directory (an exported student, or any teacher with more steps), hub id or "glyphs".
        output: folder of the pictures.
        steps: network calls; 1 for a student.
        guidance: classifier-free guidance; 1 for a student.
        count: pictures of each prompt.
        seed: the noise of picture i is drawn from seed + i.
        device: e.g. "cuda".
    """
    if not prompts or count < 1:
        raise UserError("sample: give at least one prompt and count 1 or more")
    pipeline = load_teacher(student).to(device)
    wanted = [prompt for prompt in prompts for _ in range(count)]
    seeds = range(seed, seed + len(wanted))
    noise = draw_noise(seeds, pipeline.latent_shape).to(device)
    latents = pipeline.solve(noise, pipeline.encode(wanted), steps, guidance)
    images = finite_uint8(pipeline.decode(latents), wanted, seeds)
    output.mkdir(parents=True, exist_ok=True)
    paths = [output / f"{i:03d}-{_slug(prompt)}.png" for i, prompt in enumerate(wanted)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(path)
        print(path)
    return paths


def _slug(prompt: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in prompt).split())[:60] or "empty"
