"""The verb `evaluate`: metrics of a teacher or an exported student on a named protocol."""

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffgan.cli.launch import run_on_processes
from diffgan.errors import UserError
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import glyph_protocol
from diffgan.evaluation.provenance import environment, write_json
from diffgan.evaluation.work_split import WorkSplit
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
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    devices: int = 1,
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
        batch_size: images at once, of each process.
        device: e.g. "cuda".
        dtype: of the network and the text encoders; solver, guidance and decoder compute in float32.
        devices: processes, each on a GPU of its own with --device cuda; they share the batches. Under torchrun it is
            omitted.
    """
    options = Options(pipeline, output, name, protocol, steps, guidance, cache, batch_size, device, dtype, devices)
    _check(options)
    run_on_processes(partial(_evaluate, options), devices)


class Options(NamedTuple):
    """The arguments of `evaluate`."""

    pipeline: str
    output: Path
    name: str
    protocol: str
    steps: int
    guidance: float
    cache: Path | None
    batch_size: int
    device: str
    dtype: str
    devices: int


def _check(options: Options) -> None:
    """Raises: UserError if this machine cannot do what the options ask for."""
    device, devices = options.device, options.devices
    if devices < 1:
        raise UserError(f"--devices: {devices} must be at least 1")
    if options.batch_size < 1:
        raise UserError(f"--batch_size: {options.batch_size} must be at least 1")
    if options.dtype == "float16" and device == "cpu":
        raise UserError("--dtype: float16 requires a GPU; use float32 or bfloat16 on a CPU")
    if device.startswith("cuda"):
        if devices > 1 and device != "cuda":
            raise UserError(f"--device: {device} is one device, and --devices is {devices}; use --device cuda")
        if (present := torch.cuda.device_count()) < devices:
            raise UserError(f"--devices: {devices}, but there are {present} GPUs on this machine")


def _evaluate(options: Options, split: WorkSplit, local_rank: int) -> None:
    """The work of one process; the first writes the metrics."""
    started = time.monotonic()
    sampler = _Sampler(_load(options, split, local_rank), options.steps, options.guidance)
    on_protocol = _on_photographs if options.protocol.endswith((".yaml", ".yml")) else _on_glyphs
    values = on_protocol(sampler, options, split)
    if split.rank > 0:
        return
    record = {"stage": "evaluate", "name": options.name, **_metrics(values), **_pipeline(options, split.world)}
    write_json(record | {"seconds": round(time.monotonic() - started, 1), **environment()}, options.output)
    shown = (f"{key.removeprefix('evaluation/')} {value:.4g}" for key, value in record["metrics"].items())
    print(f"{options.output}: " + ", ".join(shown))


def _load(options: Options, split: WorkSplit, local_rank: int) -> Teacher:
    """The pipeline on this process's device, its network and text encoders in the dtype."""
    device = torch.device(options.device)
    if split.world > 1 and device.type == "cuda":
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the one that the record names
    teacher = load_teacher(options.pipeline)
    for network in (teacher.denoiser, *teacher.text_encoders):
        network.to(getattr(torch, options.dtype))  # not the autoencoder: SDXL's overflows in float16
    return teacher.to(device)


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


def _on_glyphs(sampler: _Sampler, options: Options, split: WorkSplit) -> dict[str, float | str]:
    teacher, latents, batch_size = sampler.teacher, [], options.batch_size

    def generate(noise: Tensor, prompts: list[str]) -> Tensor:
        latents.append(sampler.latents(noise, prompts))
        return teacher.decode(latents[-1])

    evaluator = GlyphEvaluator(glyph_protocol(options.protocol), cache=options.cache, batch_size=batch_size)
    values = evaluator.evaluate(generate, teacher.latent_shape, split=split)
    all_latents = split.in_order(torch.cat(latents), len(evaluator.prompts), batch_size)
    return values | evaluator.reconstruction(teacher, split) | evaluator.noise_share(teacher, all_latents)


def _on_photographs(sampler: _Sampler, options: Options, split: WorkSplit) -> dict[str, float | str]:
    protocol = read_protocol(Path(options.protocol))
    evaluator = CocoEvaluator(protocol, cache=options.cache, batch_size=options.batch_size)
    return evaluator.evaluate(sampler.images, sampler.teacher.latent_shape, sampler.teacher.device, split)


def _metrics(values: dict[str, float | str]) -> dict[str, Any]:
    """Numbers under `metrics`, as the callback logs them; the protocol and its digest beside them."""
    numbers = {f"evaluation/{key}": value for key, value in values.items() if not isinstance(value, str)}
    return {"metrics": numbers} | {key: value for key, value in values.items() if isinstance(value, str)}


def _pipeline(options: Options, processes: int) -> dict[str, Any]:
    """What was evaluated, and how it was called; dtype and processes only where they are not the default."""
    path = Path(resolve_path(options.pipeline))
    config: dict[str, Any] = {"steps": options.steps, "guidance": options.guidance}
    if options.dtype != "float32":
        config["dtype"] = options.dtype
    if processes > 1:
        config["devices"] = processes
    return {
        "network_calls": options.steps,
        "pipeline": {"name": options.pipeline, "digest": digest(path) if path.is_dir() else None},
        "config": config,
    }
