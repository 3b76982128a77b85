"""What the package ships: `python -m diffgan.glyphs.build pipeline SOURCE TARGET`, `... captions COUNT TARGET`."""

import sys
from pathlib import Path

import torch

from diffgan.glyphs.recipe import describe
from diffgan.teachers.pipeline_files import save_pipeline
from diffgan.teachers.registry import load_teacher

PROMPT_SEED = 7


def ship_pipeline(source: str, target: Path) -> None:
    """Write a copy of a pipeline directory, rounded to float16, that does not say where it lay.

    Text encoders are stored in float32: transformers loads them in the dtype of their file, diffusers loads the other
    networks in float32 whatever they are stored in, and a pipeline whose parts differ in dtype does not run.
    """
    teacher = load_teacher(source, torch.float16)
    for name in ("vae", "unet"):
        getattr(teacher, name).register_to_config(_name_or_path=f"diffgan/glyphs/{name}")
    for text_encoder in teacher.text_encoders:
        text_encoder.float()
    save_pipeline(teacher.as_pipeline(), target)


def ship_captions(count: int, target: Path) -> None:
    """Write the first `count` captions of the training families that are not empty, one a line."""
    captions = (glyph.caption for glyph in describe("train", PROMPT_SEED, range(2 * count)))
    lines = [caption for caption in captions if caption][:count]
    target.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    verb, first, second = sys.argv[1:]
    ship_pipeline(first, Path(second)) if verb == "pipeline" else ship_captions(int(first), Path(second))
