"""The verb `pairs plan`: what a pair set will cost, before anything is made."""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import lightning.pytorch as pl

from callbacks.pair_writer import PairWriter
from datamodules.prompts import Prompts
from diffgan.cli.lightning_cli import UserSettingsCLI
from diffgan.cli.pairs.status import duration, size
from diffgan.errors import UserError
from diffgan.pairs.generation import PairGeneration, simulate
from diffgan.teachers.cost import NetworkCost

LATENT, NOISE = 2, 4  # bytes a value
SEED_HEAD_OFFSET = 8 + 16 + 8  # bytes a pair
PROMPTS_READ = 1000


class Recipe(NamedTuple):
    """What a configuration of `predict` names, nothing of it loaded."""

    module: PairGeneration
    data: Prompts
    writer: PairWriter
    precision: str


class Rate(NamedTuple):
    """pairs: a second, of all devices.  source: where the number comes from."""

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
        calls_per_second: network calls a second and device, of one latent each (two a call with guidance).
        peak_tflops: of one device, in the precision of the configuration, as its data sheet says.
        utilization: share of that peak that the network reaches, e.g. 0.3.
        devices: how many share the work.
    """
    _check_options(measure, calls_per_second, peak_tflops, utilization, devices)
    recipe = read_recipe(config)
    network = NetworkCost(recipe.module.teacher_path)
    recipe.data.setup("predict")
    calls = calls_of_a_pair(recipe.module, network)
    rate = _rate(recipe, network, calls, measure, calls_per_second, peak_tflops, utilization, devices)
    lines = [*_disk_lines(recipe, network), *_work_lines(recipe, network, calls), *_time_lines(recipe, rate, devices)]
    print("\n".join(f"{name:<15}{line}" for name, line in lines))


def calls_of_a_pair(module: PairGeneration, network: NetworkCost) -> int:
    """Network calls of one latent each: guidance takes two of them at a time."""
    return network.calls(module.steps, module.solver) * (1 if module.guidance == 1 else 2)


# ---- the options ----


def _check_options(
    measure: bool,
    calls_per_second: float | None,
    peak_tflops: float | None,
    utilization: float | None,
    devices: int,
) -> None:
    """Raises: UserError naming the option that cannot be, or those that do not go together."""
    if sum([measure, calls_per_second is not None, peak_tflops is not None]) > 1:
        raise UserError("plan: give one of --measure, --calls_per_second and --peak_tflops")
    if (peak_tflops is None) != (utilization is None):
        raise UserError("plan: --peak_tflops and --utilization go together")
    for option, value in {"calls_per_second": calls_per_second, "peak_tflops": peak_tflops}.items():
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{option}: {value} must be more than 0, and finite")
    if utilization is not None and not 0 < utilization <= 1:
        raise UserError(f"--utilization: {utilization} must be more than 0 and at most 1")
    if devices < 1:
        raise UserError(f"--devices: {devices} must be at least 1")


# ---- the configuration ----


class _Reader(UserSettingsCLI):
    """Reads what `predict` would run, and does not run it."""

    def instantiate_trainer(self, **kwargs) -> pl.Trainer:
        return pl.Trainer(accelerator="cpu", logger=False)  # that of the configuration may need what is not here

    def predict(self, **kwargs) -> None:
        pass


def read_recipe(config: list[str]) -> Recipe:
    """The parts of the configurations, later ones overriding earlier ones.

    Raises:
        UserError: it makes no pairs, or does not write them, or writes shards of no pairs.
    """
    words = [word for file in config for word in ("-c", file)]
    read = _Reader(args=["predict", *words], auto_configure_optimizers=False, save_config_callback=None)
    trainer = read.config_init["predict"]["trainer"]
    writers = [c for c in trainer["callbacks"] or [] if isinstance(c, PairWriter)]
    if not (isinstance(read.model, PairGeneration) and isinstance(read.datamodule, Prompts) and writers):
        raise UserError(f"{config[-1]}: does not make pairs: it needs PairGeneration, Prompts and PairWriter")
    if writers[0].shard_size < 1:
        raise UserError(f"shard_size: {writers[0].shard_size} must be at least 1")
    return Recipe(read.model, read.datamodule, writers[0], str(trainer["precision"] or "32-true"))


# ---- the lines ----


def _disk_lines(recipe: Recipe, network: NetworkCost) -> Iterator[tuple[str, str]]:
    pairs, values = recipe.data.pairs, _product(network.latent_shape)
    read = recipe.data.batch(range(min(pairs, PROMPTS_READ))).prompt
    prompt = sum(len(text.encode()) for text in read) / len(read)
    noise = NOISE * values
    one = LATENT * values + SEED_HEAD_OFFSET + prompt + (noise if recipe.writer.store_noise else 0)
    shards, shape = -(-pairs // recipe.writer.shard_size), "x".join(map(str, network.latent_shape))
    yield "pairs", f"{pairs} in {shards} shards of {recipe.writer.shard_size}, to {recipe.writer.folder}"
    yield "a pair", f"{size(one)}: latent {shape} float16, seed, prompt (mean of the first {len(read)})"
    yield "disk", f"{size(one * pairs)}; a shard {size(one * recipe.writer.shard_size)}"
    verb = "of which noise (store_noise)" if recipe.writer.store_noise else "with the noise stored"
    yield "", f"{verb}: {size(noise * pairs)}" + ("" if recipe.writer.store_noise else " more")
    yield "", f"with text embeddings in float16 stored (they are not): {size(network.embedding_bytes() * pairs)} more"


def _work_lines(recipe: Recipe, network: NetworkCost, calls: int) -> Iterator[tuple[str, str]]:
    module, flops = recipe.module, network.flops()
    halves = "" if module.guidance == 1 else " (takes two at a time)"
    how = f"{module.solver}, {module.steps} steps, guidance {module.guidance}"
    yield "network calls", f"{calls} a pair, {calls * recipe.data.pairs:.3g} in all, of one latent each: {how}{halves}"
    yield (
        "FLOPs",
        f"{flops:.3g} a call (counted on the network's configuration), {flops * calls:.3g} a pair, "
        + (f"{flops * calls * recipe.data.pairs:.3g} in all; text encoder not counted"),
    )


def _time_lines(recipe: Recipe, rate: Rate | None, devices: int) -> Iterator[tuple[str, str]]:
    if rate is None:
        yield "hours", "unknown: give --measure, --calls_per_second, or --peak_tflops with --utilization"
        return
    yield "rate", f"{rate.pairs:.3g} pairs/s on {devices} device(s): {rate.source}"
    yield "hours", f"{recipe.data.pairs / rate.pairs / 3600:.3g} ({duration(recipe.data.pairs / rate.pairs)})"


# ---- the rate ----


def _rate(
    recipe: Recipe,
    network: NetworkCost,
    calls: int,
    measure: bool,
    calls_per_second: float | None,
    peak_tflops: float | None,
    utilization: float | None,
    devices: int,
) -> Rate | None:
    """Pairs a second by what the user gave; None if that was nothing."""
    if measure:
        return measured_rate(recipe, devices)
    if calls_per_second is not None:
        return Rate(devices * calls_per_second / calls, f"{calls_per_second} calls/s a device, as given")
    if peak_tflops is not None:
        source = f"{peak_tflops} TFLOP/s a device at {utilization:.0%}, as given; an estimate"
        return Rate(devices * peak_tflops * 1e12 * utilization / (network.flops() * calls), source)
    return None


class _Stopwatch(pl.Callback):
    """Seconds of the last batch."""

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0) -> None:
        self.start = time.perf_counter()

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        outputs.latent.cpu()  # waits for the device
        self.seconds, self.device = time.perf_counter() - self.start, str(pl_module.device)


def measured_rate(recipe: Recipe, devices: int) -> Rate:
    """What this machine's device does, times `devices`."""
    batch, watch = recipe.data.batch(range(min(recipe.data.batch_size, recipe.data.pairs))), _Stopwatch()
    simulate(recipe.module, [batch, batch], recipe.precision, [watch])
    told = f"{len(batch.seed)} pairs took {watch.seconds:.3g} s on {watch.device} here, now, in {recipe.precision}"
    return Rate(devices * len(batch.seed) / watch.seconds, told + (f"; times {devices}" if devices > 1 else ""))


def _product(shape: tuple[int, ...]) -> int:
    channels, height, width = shape
    return channels * height * width
