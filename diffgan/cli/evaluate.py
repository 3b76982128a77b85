"""The verb `judge`: figures of any pipeline on a named protocol."""

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
    """Judge a pipeline directory (a teacher, or an exported student with 1 step and guidance 1) on a named protocol.

    Args:
        pipeline: directory, hub id or "glyphs".
        output: the JSON file with the figures.
        name: what the tables call it.
        protocol: "glyphs-500", "glyphs-2k", or the file of a COCO protocol (.yaml).
        steps: network calls of the solver.
        guidance: classifier-free guidance; 1 is none.
        cache: folder that keeps features of the real pictures between calls.
        batch_size: images at once.
        device: e.g. "cuda".
    """
    teacher, started = load_teacher(pipeline).to(device), time.monotonic()
    judged = _on_photographs if protocol.endswith((".yaml", ".yml")) else _on_glyphs
    figures = judged(_Called(teacher, steps, guidance), protocol, cache, batch_size)
    record = {"stage": "judge", "name": name, **_measured(figures), **_pipeline(pipeline, steps, guidance)}
    write_json(record | {"seconds": round(time.monotonic() - started, 1), **environment()}, output)
    shown = (f"{key.removeprefix('judge/')} {value:.4g}" for key, value in record["metrics"].items())
    print(f"{output}: " + ", ".join(shown))


class _Called(NamedTuple):
    """A pipeline and how it is called: noises and prompts to latents."""

    teacher: Teacher
    steps: int
    guidance: float

    def latents(self, noise: Tensor, prompts: list[str]) -> Tensor:
        given = noise.to(self.teacher.device)
        return self.teacher.solve(given, self.teacher.encode(prompts), self.steps, self.guidance)


def _on_glyphs(called: _Called, protocol: str, cache: Path | None, batch_size: int) -> dict[str, float | str]:
    teacher, latents = called.teacher, []

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latents.append(called.latents(noise, prompts))
        return teacher.decode(latents[-1])

    judge = GlyphEvaluator(glyph_protocol(protocol), cache=cache, batch_size=batch_size)
    figures = judge.evaluate(generate, teacher.latent_shape)
    return figures | judge.reconstruction(teacher) | judge.noise_share(teacher, torch.cat(latents))


def _on_photographs(called: _Called, protocol: str, cache: Path | None, batch_size: int) -> dict[str, float | str]:
    teacher = called.teacher
    judge = CocoEvaluator(read_protocol(Path(protocol)), cache=cache, batch_size=batch_size)
    generate = lambda noise, prompts: teacher.decode(called.latents(noise, prompts))  # noqa: E731
    return judge.evaluate(generate, teacher.latent_shape, teacher.device)


def _measured(figures: dict[str, float | str]) -> dict[str, Any]:
    """Numbers under `metrics`, as the callback logs them; the protocol and its digest beside them."""
    numbers = {f"judge/{key}": value for key, value in figures.items() if not isinstance(value, str)}
    return {"metrics": numbers} | {key: value for key, value in figures.items() if isinstance(value, str)}


def _pipeline(pipeline: str, steps: int, guidance: float) -> dict[str, Any]:
    """What was judged, and how it was called."""
    path = Path(resolve_path(pipeline))
    return {
        "network_calls": steps,
        "pipeline": {"name": pipeline, "digest": digest(path) if path.is_dir() else None},
        "config": {"steps": steps, "guidance": guidance},
    }
