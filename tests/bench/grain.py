"""What the judge's distances see plainly and through grain: real pictures, spoilt a little, against other real ones.

For each row FD and KID x 1000 of EfficientNet features, without and with grain, on the protocol glyphs-500.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from diffgan.evaluation.glyph_evaluator import LOOKS, MADE_GRAIN_SEED, GlyphEvaluator
from diffgan.evaluation.preprocessing import with_grain
from diffgan.evaluation.protocols.glyphs import SPLIT, glyph_protocol
from diffgan.glyphs import recipe
from diffgan.images import to_uint8
from diffgan.noise import draw_noise
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher

PROTOCOL, BATCH = "glyphs-500", 50
UNSEEN, BLUR = 2.0, 1.5  # levels of 255; pixels


def blurred(images: Tensor) -> Tensor:
    return gaussian_blur2d(images.float(), (9, 9), (BLUR, BLUR)).round().to(torch.uint8)


def reconstructed(teacher: Teacher, images: Tensor) -> Tensor:
    return torch.cat([to_uint8(teacher.decode(teacher.encode_images(part))) for part in images.split(BATCH)])


def sampled(teacher: Teacher, judge: GlyphEvaluator, steps: int, guidance: float) -> Tensor:
    """The teacher's pictures of the protocol's captions."""
    made = []
    for start in range(0, judge.protocol.images, BATCH):
        rows = slice(start, start + BATCH)
        noise = draw_noise(judge.protocol.seeds[rows], teacher.latent_shape)
        latent = teacher.solve(noise, teacher.encode(judge.protocol.prompts[rows]), steps, guidance)
        made.append(to_uint8(teacher.decode(latent)))
    return torch.cat(made)


def pictures(teacher: Teacher, judge: GlyphEvaluator) -> Iterator[tuple[str, Tensor]]:
    painted = recipe.paint(SPLIT, judge.protocol.floor)
    real = to_uint8(painted)
    yield "real", real
    yield f"real + noise of {UNSEEN:.0f} levels", with_grain(real, UNSEEN, range(len(real)))
    yield f"real, blurred by {BLUR} pixels", blurred(real)
    yield "real, through the autoencoder", reconstructed(teacher, painted)
    yield "teacher, 50 steps", sampled(teacher, judge, 50, 3.0)
    yield "teacher, 1 step", sampled(teacher, judge, 1, 1.0)


def distances(judge: GlyphEvaluator, images: Tensor) -> list[float]:
    """FD and KID x 1000, plainly and through grain."""
    figures = {}
    for look, grain in LOOKS.items():
        figures |= judge._distances(judge._features(images, "looking", grain, MADE_GRAIN_SEED), look)
    scales = {"fd": 1, "kid": 1000}
    return [scales[name.split("_")[0]] * value for name, value in figures.items() if not name.endswith("_floor")]


@torch.no_grad()
def main() -> None:
    teacher = load_teacher("glyphs")
    judge = GlyphEvaluator(glyph_protocol(PROTOCOL), cache=Path("runs/judge"))
    print(f"{'':30}" + "".join(f"{head:>12}" for head in ("FD", "KID x 1000", "FD, grain", "KID, grain")))
    for name, images in pictures(teacher, judge):
        print(f"{name:30}" + "".join(f"{value:12.1f}" for value in distances(judge, images)), flush=True)


if __name__ == "__main__":
    main()
