"""The verb `pairs plan`: what a pair set will take, before anything is made."""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import lightning.pytorch as pl

from callbacks.pair_writer import PairWriter
from datamodules.prompts import Prompts
from diffgan.cli.pairs.units import format_duration, format_size
from diffgan.cli.planning import ConfigReader, callbacks_of, print_lines
from diffgan.errors import UserError
from diffgan.pairs.generation import PairGeneration, generate_pairs
from diffgan.teachers.cost import NetworkCost

FLOAT16, FLOAT32 = 2, 4  # bytes per value
SEED_HEAD_OFFSET = 8 + 16 + 8  # bytes per pair
PROMPTS_READ = 1000  # of which the mean length is taken


class Recipe(NamedTuple):
    """What a configuration of `predict` describes; no weights are loaded."""

    module: PairGeneration
    data: Prompts
    writer: PairWriter
    precision: str


class RateOptions(NamedTuple):
    """The options of `plan` that say how fast pairs are made."""

    measure: bool
    calls_per_second: float | None
    peak_tflops: float | None
    utilization: float | None
    devices: int


class Rate(NamedTuple):
    """pairs: per second, of all devices.  source: where the number comes from."""

    pairs: float
    source: str


def plan(
    *,
    config: list[str],
    measure: bool = False,
    calls_per_second: float | None = None,
    peak_tflops: float | None = None,
    utilization: float | None = None,
    devices: int = 1,
) -> None:
    """What a pair set will take: pairs, disk, network calls and hours. Nothing is written.

    Args:
        config: configuration of `diffgan predict`; may be repeated, later ones override earlier ones.
        measure: make two batches on this machine's device now and time the second.
        calls_per_second: network calls per second and device, of one latent each (two per call with guidance).
        peak_tflops: of one device, in the precision of the configuration, from its data sheet.
        utilization: share of that peak that the network reaches, e.g. 0.3.
        devices: how many share the work.
    """
    options = RateOptions(measure, calls_per_second, peak_tflops, utilization, devices)
    _check_options(options)
    recipe = read_recipe(config)
    cost = NetworkCost(recipe.module.teacher_path, recipe.module.size)
    recipe.data.setup("predict")
    calls = calls_per_pair(recipe.module, cost)
    rate = _rate(recipe, cost, calls, options)
    lines = [
        *_disk_lines(recipe, cost),
        *_work_lines(recipe, cost, calls),
        *_time_lines(recipe.data.pairs, rate, devices),
    ]
    print_lines(lines)


def calls_per_pair(module: PairGeneration, cost: NetworkCost) -> int:
    """Network calls per pair, counted for one latent each: classifier-free guidance doubles them."""
    return cost.calls(module.steps, module.solver) * cost.rows(module.guidance)


# ---- the options ----


def _check_options(options: RateOptions) -> None:
    """Raises: UserError naming an option that is out of range, or options that exclude or require each other."""
    sources = [options.measure, options.calls_per_second is not None, options.peak_tflops is not None]
    if sum(sources) > 1:
        raise UserError("plan: give one of --measure, --calls_per_second and --peak_tflops")
    if (options.peak_tflops is None) != (options.utilization is None):
        raise UserError("plan: --peak_tflops and --utilization require each other")
    for name in ("calls_per_second", "peak_tflops"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name}: {value} must be more than 0, and finite")
    if options.utilization is not None and not 0 < options.utilization <= 1:
        raise UserError(f"--utilization: {options.utilization} must be more than 0 and at most 1")
    if options.devices < 1:
        raise UserError(f"--devices: {options.devices} must be at least 1")


# ---- the configuration ----


def read_recipe(config: list[str]) -> Recipe:
    """What the configurations describe, later ones overriding earlier ones.

    Raises:
        UserError: they do not make pairs, do not write them, or give an impossible shard size.
    """
    cli = ConfigReader("predict", config)
    trainer = cli.config_init["predict"]["trainer"]
    writer = next((each for each in callbacks_of(trainer) if isinstance(each, PairWriter)), None)
    if not (isinstance(cli.model, PairGeneration) and isinstance(cli.datamodule, Prompts) and writer):
        raise UserError(f"{config[-1]}: does not make pairs: that requires PairGeneration, Prompts and PairWriter")
    if writer.shard_size < 1:
        raise UserError(f"shard_size: {writer.shard_size} must be at least 1")
    return Recipe(cli.model, cli.datamodule, writer, str(trainer["precision"] or "32-true"))


# ---- the lines ----


def _disk_lines(recipe: Recipe, cost: NetworkCost) -> Iterator[tuple[str, str]]:
    pairs, shard_size, values = recipe.data.pairs, recipe.writer.shard_size, math.prod(cost.latent_shape)
    prompts = recipe.data.batch(range(min(pairs, PROMPTS_READ))).prompt
    prompt = sum(len(text.encode()) for text in prompts) / len(prompts)
    noise = FLOAT32 * values
    pair = FLOAT16 * values + SEED_HEAD_OFFSET + prompt + (noise if recipe.writer.store_noise else 0)
    shards, shape = -(-pairs // shard_size), "x".join(map(str, cost.latent_shape))
    yield "pairs", f"{pairs} in {shards} shards of {shard_size}, to {recipe.writer.folder}"
    yield "a pair", f"{format_size(pair)}: latent {shape} float16, seed, prompt (mean of the first {len(prompts)})"
    yield "disk", f"{format_size(pair * pairs)}; a shard {format_size(pair * shard_size)}"
    if recipe.writer.store_noise:
        yield "", f"of which noise (store_noise): {format_size(noise * pairs)}"
    else:
        yield "", f"with the noise stored: {format_size(noise * pairs)} more"
    embedding = cost.embedding_bytes()
    in_all = format_size(embedding * pairs)
    yield (
        "",
        f"`pairs embed` stores {format_size(embedding)} (float32) for each distinct prompt: {in_all} if all differ",
    )


def _work_lines(recipe: Recipe, cost: NetworkCost, calls: int) -> Iterator[tuple[str, str]]:
    module, pairs, flops = recipe.module, recipe.data.pairs, cost.flops()
    name = module.solver or cost.schedule.own_solver
    solver = f"{name}, {module.steps} steps, guidance {module.guidance}"
    guided = "" if cost.rows(module.guidance) == 1 else " (takes two at a time)"
    yield "network calls", f"{calls} a pair, {calls * pairs:.3g} in all, of one latent each: {solver}{guided}"
    per_call = f"{flops:.3g} a call (counted on the network's configuration)"
    in_all = f"{flops * calls:.3g} a pair, {flops * calls * pairs:.3g} in all; text encoder not counted"
    yield "FLOPs", f"{per_call}, {in_all}"


def _time_lines(pairs: int, rate: Rate | None, devices: int) -> Iterator[tuple[str, str]]:
    if rate is None:
        yield "hours", "unknown: give --measure, --calls_per_second, or --peak_tflops with --utilization"
        return
    seconds = pairs / rate.pairs
    yield "rate", f"{rate.pairs:.3g} pairs/s on {devices} device(s): {rate.source}"
    yield "hours", f"{seconds / 3600:.3g} ({format_duration(seconds)})"


# ---- the rate ----


def _rate(recipe: Recipe, cost: NetworkCost, calls: int, options: RateOptions) -> Rate | None:
    """Pairs per second; None if no option says how fast the device is."""
    devices, peak, utilization = options.devices, options.peak_tflops, options.utilization
    if options.measure:
        return measured_rate(recipe, devices)
    if options.calls_per_second is not None:
        source = f"{options.calls_per_second} calls/s a device, as given"
        return Rate(devices * options.calls_per_second / calls, source)
    if peak is not None:
        source = f"{peak} TFLOP/s a device at {utilization:.0%}, as given; an estimate"
        return Rate(devices * peak * 1e12 * utilization / (cost.flops() * calls), source)
    return None


class _Stopwatch(pl.Callback):
    """Seconds of the last batch."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.start = time.perf_counter()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        outputs.latent.cpu()  # waits for the device
        self.seconds, self.device = time.perf_counter() - self.start, str(pl_module.device)


def measured_rate(recipe: Recipe, devices: int) -> Rate:
    """The rate of this machine's device, times `devices`."""
    batch = recipe.data.batch(range(min(recipe.data.batch_size, recipe.data.pairs)))
    stopwatch = _Stopwatch()
    generate_pairs(recipe.module, [batch, batch], recipe.precision, [stopwatch])
    pairs, seconds = len(batch.seed), stopwatch.seconds
    source = f"{pairs} pairs took {seconds:.3g} s on {stopwatch.device} here, now, in {recipe.precision}"
    if devices > 1:
        source += f"; times {devices}"
    return Rate(devices * pairs / seconds, source)
