"""The verb `judge`: figures of any pipeline on a named protocol."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgan.metrics.judge import GlyphJudge
from diffgan.metrics.protocols import glyph_protocol
from diffgan.record import digest, environment, write_json
from diffgan.teacher import Teacher, resolve


def judge(
    pipeline: str,
    output: Path,
    name: str = "teacher",
    protocol: str = "glyphs-500",
    steps: int = 50,
    guidance: float = 3.0,
    cache: Path | None = None,
    device: str = "cpu",
) -> None:
    """Judge a pipeline directory (a teacher, or an exported student with 1 step and guidance 1) on a glyph protocol.

    Args:
        pipeline: directory, hub id or "glyphs".
        output: the JSON file with the figures.
        name: what the tables call it.
        protocol: "glyphs-500" or "glyphs-2k".
        steps: network calls of the solver.
        guidance: classifier-free guidance; 1 is none.
        cache: folder that keeps features of the real pictures between calls.
        device: e.g. "cuda".
    """
    teacher, latents = Teacher.from_pretrained(pipeline).to(device), []

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latents.append(teacher.solve(noise.to(device), teacher.encode(prompts), steps, guidance))
        return teacher.decode(latents[-1])

    started = time.monotonic()
    judge = GlyphJudge(glyph_protocol(protocol), cache=cache)
    figures = judge.evaluate(generate, teacher.latent_shape)
    figures |= judge.reconstruction(teacher) | judge.noise_share(teacher, torch.cat(latents))
    record = {"stage": "judge", "name": name, **_measured(figures), **_pipeline(pipeline, steps, guidance)}
    write_json(record | {"seconds": round(time.monotonic() - started, 1), **environment()}, output)
    shown = (f"{key.removeprefix('judge/')} {value:.4g}" for key, value in record["metrics"].items())
    print(f"{output}: " + ", ".join(shown))


def _measured(figures: dict[str, float | str]) -> dict[str, Any]:
    """Numbers under `metrics`, as the callback logs them; the protocol and its digest beside them."""
    numbers = {f"judge/{key}": value for key, value in figures.items() if not isinstance(value, str)}
    return {"metrics": numbers} | {key: value for key, value in figures.items() if isinstance(value, str)}


def _pipeline(pipeline: str, steps: int, guidance: float) -> dict[str, Any]:
    """What was judged, and how it was called."""
    path = Path(resolve(pipeline))
    return {
        "network_calls": steps,
        "pipeline": {"name": pipeline, "digest": digest(path) if path.is_dir() else None},
        "config": {"steps": steps, "guidance": guidance},
    }
