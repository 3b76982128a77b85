"""The verb `evaluate`: metrics of a teacher or an exported student on a named protocol."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import glyph_protocol
from diffgan.evaluation.provenance import environment, write_json
from diffgan.storage.digests import digest
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import load_teacher, resolve_path


def evaluate(
    pipeline: str,
    output: Path,
    name: str = "teacher",
    protocol: str = "glyphs-500",
    steps: int = 50,
    guidance: float = 3.0,
    cache: Path | None = None,
    batch_size: int = 50,
    device: str = "cpu",
) -> None:
    """Evaluate a pipeline directory (a teacher, or an exported student with 1 step and guidance 1) on a named protocol.

    Args:
        pipeline: directory, hub id or "glyphs".
        output: the JSON file of the metrics.
        name: what the tables call it.
        protocol: "glyphs-500" or "glyphs-2k" (64x64 images), or the file of a COCO protocol (.yaml).
        steps: of the solver (DDIM, timesteps spaced `trailing`).
        guidance: classifier-free guidance; 1 is none.
        cache: folder that keeps features of the real images between calls.
        batch_size: images at once.
        device: e.g. "cuda".
    """
    teacher, started = load_teacher(pipeline).to(device), time.monotonic()
    on_protocol = _on_photographs if protocol.endswith((".yaml", ".yml")) else _on_glyphs
    values = on_protocol(_Sampler(teacher, steps, guidance), protocol, cache, batch_size)
    record = {"stage": "evaluate", "name": name, **_metrics(values), **_pipeline(pipeline, steps, guidance)}
    write_json(record | {"seconds": round(time.monotonic() - started, 1), **environment()}, output)
    shown = (f"{key.removeprefix('evaluation/')} {value:.4g}" for key, value in record["metrics"].items())
    print(f"{output}: " + ", ".join(shown))


class _Sampler(NamedTuple):
    """A pipeline and how it is called: noise and prompts to latents."""

    teacher: Teacher
    steps: int
    guidance: float

    def latents(self, noise: Tensor, prompts: list[str]) -> Tensor:
        """noise (N, C, H, W) on any device -> latents (N, C, H, W) on the teacher's."""
        noise = noise.to(self.teacher.device)
        return self.teacher.solve(noise, self.teacher.encode(prompts), self.steps, self.guidance)

    def images(self, noise: Tensor, prompts: list[str]) -> Tensor:
        """noise (N, C, H, W) on any device -> images (N, 3, H, W) in [-1, 1] on the teacher's."""
        return self.teacher.decode(self.latents(noise, prompts))


def _on_glyphs(sampler: _Sampler, protocol: str, cache: Path | None, batch_size: int) -> dict[str, float | str]:
    teacher, latents = sampler.teacher, []

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latents.append(sampler.latents(noise, prompts))
        return teacher.decode(latents[-1])

    evaluator = GlyphEvaluator(glyph_protocol(protocol), cache=cache, batch_size=batch_size)
    values = evaluator.evaluate(generate, teacher.latent_shape)
    return values | evaluator.reconstruction(teacher) | evaluator.noise_share(teacher, torch.cat(latents))


def _on_photographs(sampler: _Sampler, protocol: str, cache: Path | None, batch_size: int) -> dict[str, float | str]:
    evaluator = CocoEvaluator(read_protocol(Path(protocol)), cache=cache, batch_size=batch_size)
    return evaluator.evaluate(sampler.images, sampler.teacher.latent_shape, sampler.teacher.device)


def _metrics(values: dict[str, float | str]) -> dict[str, Any]:
    """Numbers under `metrics`, as the callback logs them; the protocol and its digest beside them."""
    numbers = {f"evaluation/{key}": value for key, value in values.items() if not isinstance(value, str)}
    return {"metrics": numbers} | {key: value for key, value in values.items() if isinstance(value, str)}


def _pipeline(pipeline: str, steps: int, guidance: float) -> dict[str, Any]:
    """What was evaluated, and how it was called."""
    path = Path(resolve_path(pipeline))
    return {
        "network_calls": steps,
        "pipeline": {"name": pipeline, "digest": digest(path) if path.is_dir() else None},
        "config": {"steps": steps, "guidance": guidance},
    }
