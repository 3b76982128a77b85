"""The verb `judge`: figures of any pipeline on a named protocol."""

import time
from pathlib import Path

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
    metrics = {f"judge/{key}": value for key, value in figures.items() if not isinstance(value, str)}
    path = Path(resolve(pipeline))
    record = {
        "stage": "judge",
        "name": name,
        "metrics": metrics,
        "network_calls": steps,
        "pipeline": {"name": pipeline, "digest": digest(path) if path.is_dir() else None},
        "seconds": round(time.monotonic() - started, 1),
        "protocol": figures["protocol"],
        "protocol_digest": figures["protocol_digest"],
        **environment(),
        "config": {"steps": steps, "guidance": guidance},
    }
    write_json(record, output)
    print(f"{output}: " + ", ".join(f"{key.removeprefix('judge/')} {value:.4g}" for key, value in metrics.items()))
