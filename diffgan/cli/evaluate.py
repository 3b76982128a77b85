"""The verb `evaluate`: metrics of a pipeline on a named protocol, and its images in a folder."""

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from diffgan.cli.evaluate_options import DTYPE, Options, check
from diffgan.cli.launch import run_on_processes
from diffgan.errors import UserError
from diffgan.evaluation.coco_evaluator import CocoEvaluator
from diffgan.evaluation.evaluator import EvaluationProtocol
from diffgan.evaluation.glyph_evaluator import GlyphEvaluator
from diffgan.evaluation.image_generation import save_images_of_prompts
from diffgan.evaluation.layouts import Flat, Layout, read_layout
from diffgan.evaluation.pipeline_sampler import PipelineSampler
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.protocols.glyphs import glyph_protocol
from diffgan.evaluation.provenance import environment, write_json
from diffgan.evaluation.rows import is_row, read_row
from diffgan.evaluation.samplers import Sampler, TeacherSampler
from diffgan.evaluation.saved_images import SavedImages
from diffgan.evaluation.work_split import WorkSplit


def evaluate(
    pipeline: str,
    output: Path,
    name: str | None = None,
    protocol: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    cache: Path | None = None,
    batch_size: int = 50,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    devices: int = 1,
    save_images: Path | None = None,
    layout: Literal["flat", "geneval", "geneval2", "dpg"] = "flat",
    prompts: str | None = None,
    teacher_images: Path | None = None,
) -> None:
    """Evaluate a pipeline directory (a teacher, or an exported student with 1 step and guidance 1) on a named protocol.

    Args:
        pipeline: directory, hub id or "glyphs"; or a row file (.yaml): a diffusers pipeline and how it is called.
        output: the JSON file of the metrics.
        name: what the tables call it; default: the row's name, or "teacher".
        protocol: "glyphs-500" (default) or "glyphs-2k" (64x64 images), or the file of a COCO protocol (.yaml).
        steps: of the solver (DDIM, timesteps spaced `trailing`); default: 50. A row says its own.
        guidance: classifier-free guidance; 1 is none; default: 3. A row says its own.
        cache: folder that keeps features of the real images between calls.
        batch_size: images at once, of each process.
        device: e.g. "cuda".
        dtype: of the network and the text encoders; the decoder is in float32. Default: the row's, or float32.
        devices: processes, with --device cuda each on its own GPU; under torchrun omitted.
        save_images: folder that gets the generated images; the same command resumes.
        layout: of that folder: flat (00000.png, ...), or as the tools of GenEval, GenEval 2 and DPG-Bench read it.
        prompts: images without metrics of this prompt file (or DPG-Bench's folder) in place of a protocol.
        teacher_images: such a folder of the teacher's images, to compare with.
    """
    row = read_row(Path(pipeline)) if is_row(pipeline) else None
    own = (pipeline, output, name, protocol, steps, guidance, cache, batch_size, device, dtype, devices)
    options = Options(*own, save_images, layout, prompts, teacher_images, row)
    check(options)
    run_on_processes(partial(_evaluate, options.completed()), devices)


def _evaluate(options: Options, split: WorkSplit, local_rank: int) -> None:
    """The work of one process; the first writes the record."""
    started = time.monotonic()
    sampler = _load(options, split, local_rank)
    values = _generate_and_measure(sampler, options, split)
    if split.rank > 0:
        return
    config = _config(sampler, options) | ({"devices": split.world} if split.world > 1 else {})
    record = {"stage": "evaluate", "name": options.name, **_metrics(values)}
    record |= {"network_calls": sampler.network_calls, "pipeline": sampler.pipeline, "config": config}
    write_json(record | {"seconds": round(time.monotonic() - started, 1), **environment()}, options.output)
    shown = (f"{key.removeprefix('evaluation/')} {value:.4g}" for key, value in record["metrics"].items())
    print(f"{options.output}: " + ", ".join(shown))


def _load(options: Options, split: WorkSplit, local_rank: int) -> Sampler:
    """The pipeline on this process's device, its network and text encoders in the dtype."""
    device = torch.device(options.device)
    if split.world > 1 and device.type == "cuda":
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)  # the one that the record names
    sampler = _sampler(options)
    sampler.to(device, getattr(torch, options.dtype))
    return sampler


def _sampler(options: Options) -> Sampler:
    if options.row is None:
        return TeacherSampler(options.pipeline, options.steps, options.guidance)
    try:
        return PipelineSampler(options.row)
    except UserError as error:
        raise UserError(f"row {options.pipeline}: {error}") from error


# ---- images and metrics ----


def _generate_and_measure(sampler: Sampler, options: Options, split: WorkSplit) -> dict[str, Any]:
    """The values of the protocol's metrics; with --prompts what was generated."""
    if options.prompts is not None:
        layout = read_layout(options.layout, options.prompts)
        saved = _folder(sampler, options, split, layout, Path(options.prompts).name, layout.digest)
        return save_images_of_prompts(sampler, saved, options.batch_size, split)
    on_protocol = _on_photographs if options.protocol.endswith((".yaml", ".yml")) else _on_glyphs
    return on_protocol(sampler, options, split)


def _on_glyphs(sampler: Sampler, options: Options, split: WorkSplit) -> dict[str, Any]:
    latents, batch_size = [], options.batch_size

    def generate(noise: Tensor, prompts: list[str], seeds: list[int]) -> Tensor:
        latents.append(sampler.latents(noise, prompts, seeds))
        return sampler.decode(latents[-1])

    settings = {"cache": options.cache, "batch_size": batch_size, "teacher_images": options.teacher_images}
    evaluator = GlyphEvaluator(glyph_protocol(options.protocol), **settings)
    saved = _folder_of(evaluator.protocol, sampler, options, split)
    values = evaluator.evaluate(generate, sampler.latent_shape, split=split, saved=saved)
    values |= evaluator.reconstruction(sampler, split)
    own = split.batches(len(evaluator.prompts), batch_size)
    if not split.agree(len(latents) == len(own)):  # images of an earlier call: their latents are not kept
        return values
    all_latents = split.in_order(torch.cat(latents), len(evaluator.prompts), batch_size)
    return values | evaluator.noise_share(sampler, all_latents)


def _on_photographs(sampler: Sampler, options: Options, split: WorkSplit) -> dict[str, Any]:
    protocol = read_protocol(Path(options.protocol))
    settings = {"cache": options.cache, "batch_size": options.batch_size, "teacher_images": options.teacher_images}
    evaluator = CocoEvaluator(protocol, **settings)
    saved = _folder_of(protocol, sampler, options, split)
    return evaluator.evaluate(sampler.images, sampler.latent_shape, sampler.device, split, saved)


def _folder_of(
    protocol: EvaluationProtocol, sampler: Sampler, options: Options, split: WorkSplit
) -> SavedImages | None:
    """The folder of the protocol's images, if there is to be one."""
    if options.save_images is None:
        return None
    return _folder(sampler, options, split, Flat(protocol.prompts), protocol.name, protocol.digest)


def _folder(
    sampler: Sampler, options: Options, split: WorkSplit, layout: Layout, protocol: str, digest: str
) -> SavedImages:
    """The folder of a layout's images; what decides them is its record (collective)."""
    record = {"layout": options.layout, "protocol": protocol, "protocol_digest": digest}
    record |= {"images": len(layout.prompts) * layout.per_prompt}
    if split.rank == 0:  # digests of large files take a while
        record |= {"pipeline": sampler.pipeline, "config": _config(sampler, options)}
    return SavedImages(options.save_images, layout, record, split)


# ---- the record ----


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers under `metrics`, as the callback logs them; beside them protocol, digest and teacher's images."""
    numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
    beside = {key: value for key, value in values.items() if key not in numbers}
    return {"metrics": {f"evaluation/{key}": value for key, value in numbers.items()}, **beside}


def _config(sampler: Sampler, options: Options) -> dict[str, Any]:
    """How the pipeline was called; its dtype only where it is not the default."""
    return sampler.settings() | ({"dtype": options.dtype} if options.dtype != DTYPE else {})
