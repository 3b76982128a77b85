"""What the distances see with and without grain: real images, slightly degraded, against other real ones.

For each row FD and KID x 1000 of EfficientNet features, without and with grain, on the protocol glyphs-500.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.grain import GRAIN, PLAIN, with_grain
from diffgan.evaluation.metrics.base import ImageMetric
from diffgan.evaluation.metrics.distances import FrechetDistance, KernelDistance
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
    return torch.cat([to_uint8(teacher.decode(teacher.encode_images(batch))) for batch in images.split(BATCH)])


def sampled(teacher: Teacher, evaluator: GlyphEvaluator, steps: int, guidance: float) -> Tensor:
    """The teacher's images of the protocol's captions."""
    protocol, images = evaluator.protocol, []
    for start in range(0, protocol.images, BATCH):
        rows = slice(start, start + BATCH)
        noise = draw_noise(protocol.seeds[rows], teacher.latent_shape)
        latent = teacher.solve(noise, teacher.encode(evaluator.prompts[rows]), steps, guidance)
        images.append(to_uint8(teacher.decode(latent)))
    return torch.cat(images)


def image_sets(teacher: Teacher, evaluator: GlyphEvaluator) -> Iterator[tuple[str, Tensor]]:
    """Names and images (N, 3, 64, 64) uint8."""
    rendered = recipe.paint(SPLIT, evaluator.protocol.floor)
    real = to_uint8(rendered)
    yield "real", real
    yield f"real + noise of {UNSEEN:.0f} levels", with_grain(real, UNSEEN, range(len(real)))
    yield f"real, blurred by {BLUR} pixels", blurred(real)
    yield "real, through the autoencoder", reconstructed(teacher, rendered)
    yield "teacher, 50 steps", sampled(teacher, evaluator, 50, 3.0)
    yield "teacher, 1 step", sampled(teacher, evaluator, 1, 1.0)


def distances(evaluator: GlyphEvaluator, images: Tensor) -> list[float]:
    """FD and KID x 1000, without and with grain."""
    metrics: list[ImageMetric] = []
    for view in (PLAIN, GRAIN):
        metrics += [FrechetDistance("efficientnet", view), KernelDistance("efficientnet", view)]
    images_of: Callable[[list[int]], Tensor] = lambda rows: images[rows]  # noqa: E731
    values = evaluator.measure(metrics, images_of, len(images), "distances")
    columns = [column for metric in metrics for column in metric.columns]
    return [values[column.key] * column.scale for column in columns]


@torch.no_grad()
def main() -> None:
    teacher = load_teacher("glyphs")
    evaluator = GlyphEvaluator(glyph_protocol(PROTOCOL), cache=Path("runs/evaluation"))
    print(f"{'':30}" + "".join(f"{head:>12}" for head in ("FD", "KID x 1000", "FD, grain", "KID, grain")))
    for name, images in image_sets(teacher, evaluator):
        print(f"{name:30}" + "".join(f"{value:12.1f}" for value in distances(evaluator, images)), flush=True)


if __name__ == "__main__":
    main()
