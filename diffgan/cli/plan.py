"""The verb `plan`: the memory that a distillation takes, before anything is downloaded or trained."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy

from callbacks.ema import EMA
from callbacks.evaluation import Evaluation
from callbacks.image_checkpoint import ImageCheckpoint
from callbacks.sample_grid import SampleGrid
from callbacks.training_health import TrainingHealth
from datamodules.latent_pairs import LatentPairs
from diffgan.cli.config_files import Prepared
from diffgan.cli.planning import ConfigReader, callbacks_of, print_lines
from diffgan.errors import UserError
from diffgan.latent_space import LatentSpace
from diffgan.memory import eight_bit
from diffgan.memory.budget import (
    AVERAGE,
    DDP,
    DDP_COPIES,
    FSDP2,
    SHARED,
    SINGLE,
    MemoryBudget,
    TrainingSetup,
    plan_memory,
)
from diffgan.memory.drawing import Drawing
from diffgan.memory.networks import skeleton_teacher
from diffgan.memory.simulation import R1, Pass
from diffgan.methods.checks import check_precision
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.methods.micro_batches import check_micro_batches
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.weights import PerceptualWeights, save_weights, weights_file
from diffgan.teachers.base import Teacher
from diffgan.training.strategies import FSDP2Strategy

GPUS = (24, 40, 80)  # sizes of usual GPUs, 10^9 bytes
DISTANCES = ("LatentLPIPS", "ELatentLPIPS")


def plan(*, config: list[str], devices: int | None = None) -> None:
    """The memory of a distillation on each GPU and on the host, simulated from configurations alone.

    Args:
        config: configuration of `diffgan fit`; may be repeated, later ones override earlier ones.
        devices: number of GPUs in all, in place of the configuration's.
    """
    if devices is not None and devices < 1:
        raise UserError(f"--devices: {devices} must be at least 1")
    module, teacher, setup = read_training(config, devices)
    print_lines(report(module, setup, plan_memory(module, teacher, setup)))


# ---- the configuration ----


class _TrainingReader(ConfigReader):
    """Builds a distillation without the weights of its perceptual network and without bitsandbytes."""

    teacher: Teacher

    def prepare(self, args: Sequence[str]) -> Prepared:
        prepared = super().prepare(args)
        return prepared._replace(texts={text: _without_bitsandbytes(new) for text, new in prepared.texts.items()})

    def instantiate_classes(self) -> None:
        model = self.config["fit"].get("model")
        arguments = (model and model.get("init_args")) or {}
        if not (path := arguments.get("teacher")):
            return super().instantiate_classes()
        self.teacher = skeleton_teacher(path, size=arguments.get("size"))
        with tempfile.TemporaryDirectory() as folder:
            for arguments in _distances(model):
                _substitute_weights(arguments, Path(folder) / "latent_lpips.safetensors", self.teacher.space)
            return super().instantiate_classes()


def _without_bitsandbytes(text: str) -> str:
    """A configuration whose 8-bit optimizers are those of `diffgan.memory.eight_bit`."""
    for name in eight_bit.NAMES:
        text = text.replace(f'bitsandbytes.optim.{name}"', f'diffgan.memory.eight_bit.{name}"')
    return text


def _distances(config: Any) -> Iterator[Any]:
    """The arguments of every perceptual distance in a configuration."""
    if not hasattr(config, "get"):
        return
    if str(config.get("class_path")).rpartition(".")[2] in DISTANCES:
        yield config["init_args"]
    for value in (config if isinstance(config, dict) else vars(config)).values():
        yield from _distances(value)


def _substitute_weights(arguments: Any, file: Path, space: LatentSpace) -> None:
    """Where the weights do not exist yet, name random ones of the size that `fit` makes."""
    if not weights_file(arguments["weights"]).is_file():
        save_weights(file, PerceptualWeights(LatentVGG16(space.channels).eval(), space))
        arguments["weights"] = file


def read_training(config: list[str], devices: int | None = None) -> tuple[Diffusion2GAN, Teacher, TrainingSetup]:
    """What the configurations describe, later ones overriding earlier ones.

    Raises:
        UserError: they are no distillation of pairs, or the batch does not divide among the processes.
    """
    cli = _TrainingReader("fit", config)
    module, data, trainer = cli.model, cli.datamodule, cli.config_init["fit"]["trainer"]
    if not (isinstance(module, Diffusion2GAN) and isinstance(data, LatentPairs)):
        raise UserError(f"{config[-1]}: is no distillation: that requires Diffusion2GAN and LatentPairs")
    precision = str(trainer["precision"] or "32-true")
    check_precision(precision)
    processes = devices or _processes(trainer["devices"], trainer["num_nodes"])
    callbacks = callbacks_of(trainer)
    module.regression.check_space(cli.teacher.space)
    setup = TrainingSetup(
        pairs=_pairs_per_process(module, data.batch_size, processes),
        processes=processes,
        strategy=_strategy(trainer["strategy"], processes),
        mixed=precision == "bf16-mixed",
        embeddings=data.embeddings is not None,
        ema_on_cpu=any(getattr(callback, "on_cpu", False) for callback in callbacks if isinstance(callback, EMA)),
        asynchronous=any(
            getattr(callback, "asynchronous", False) for callback in callbacks if isinstance(callback, ImageCheckpoint)
        ),
        drawings=tuple(_drawings(callbacks)),
    )
    return module, cli.teacher, setup


def _drawings(callbacks: Iterable[pl.Callback]) -> Iterator[Drawing]:
    """What callbacks draw during a fit."""
    for each in callbacks:
        name = type(each).__name__
        if isinstance(each, SampleGrid):
            yield Drawing(name, len(each.prompts), len(each.prompts), by_teacher=True)
        elif isinstance(each, TrainingHealth):
            yield Drawing(name, len(each.prompts) * each.noises, images=0, by_teacher=True)
        elif isinstance(each, Evaluation) and each.every_images is not None:
            yield Drawing(name, each.batch_size, each.batch_size, by_teacher=False)


def _processes(devices: Any, nodes: int) -> int:
    """Number of processes that a trainer starts; "auto" counts as one device."""
    if isinstance(devices, list):
        return len(devices) * nodes
    text = str(devices)
    if "," in text:
        return len([word for word in text.split(",") if word.strip()]) * nodes
    return max(1, int(text)) * nodes if text.lstrip("-").isdigit() else nodes


def _strategy(strategy: Any, processes: int) -> str:
    """How the processes share the work. Raises UserError for a strategy that is not supported."""
    if isinstance(strategy, FSDP2Strategy):
        return FSDP2
    if isinstance(strategy, DDPStrategy):
        return DDP if strategy._ddp_kwargs.get("gradient_as_bucket_view") else DDP_COPIES
    if strategy == "auto":
        return SINGLE if processes == 1 else DDP_COPIES
    if isinstance(strategy, str) and strategy.startswith("ddp"):
        return DDP_COPIES
    raise UserError(f"trainer.strategy: {strategy} cannot be planned; use DDP, FSDP2Strategy or one device")


def _pairs_per_process(module: Diffusion2GAN, batch_size: int, processes: int) -> int:
    """Raises UserError if the batch does not divide among processes and micro-batches."""
    if batch_size < 1 or batch_size % processes:
        raise UserError(f"batch_size: {batch_size} pairs do not divide among {processes} processes")
    pairs = batch_size // processes
    check_micro_batches(pairs, module.micro_batch_count)
    if module.adversarial is not None:
        module.adversarial.check_batch(pairs, processes)
    return pairs


# ---- the lines ----


def _size(size: float) -> str:
    return f"{size / 1e9:7.2f} GB {size / 2**30:7.2f} GiB"


def report(module: Diffusion2GAN, setup: TrainingSetup, budget: MemoryBudget) -> Iterator[tuple[str, str]]:
    """Labels and texts of the plan; sizes are for each GPU."""
    yield from _training_lines(module, setup, budget)
    yield "on each GPU", ""
    for name, size in budget.parts.items():
        if size:
            yield f"  {name}", _size(size)
    for each in budget.passes:
        yield f"  {each.name}", f"{_size(each.total)}   {_composition(each)}"
    highest = budget.highest
    yield "peak", f"{_size(budget.peak)}   everything above with the highest pass: {highest.name}"
    if budget.drawing:
        largest = max(budget.drawings, key=budget.drawings.get)
        yield "drawing", f"{_size(budget.fixed + budget.drawing)}   {largest}"
    yield "allowance", f"{_size(budget.allowance)}   CUDA context, communication, fragmentation (an estimate)"
    yield "required", f"{_size(budget.required)}   {_verdict(budget.required)}"
    for i, remedy in enumerate(remedies(module, setup, budget)):
        yield "" if i else "to need less", remedy
    yield from _host_lines(budget)


def _training_lines(module: Diffusion2GAN, setup: TrainingSetup, budget: MemoryBudget) -> Iterator[tuple[str, str]]:
    weights = ", ".join(f"{name.upper()} {count / 1e6:.1f} M" for name, count in budget.weights.items())
    yield "networks", f"{module.teacher_path}; weights: {weights}"
    count = module.micro_batch_count
    batch = f"{setup.pairs} pairs in {count} micro-batch{'es' if count > 1 else ''} of {setup.pairs // count}"
    where = "one GPU" if setup.strategy == SINGLE else f"{setup.strategy} over {setup.processes}"
    yield "each process", f"{batch}; {where}; {'bf16-mixed' if setup.mixed else 'float32'}"
    checkpointing = "on" if module.gradient_checkpointing else "off"
    exact = module.adversarial is not None and module.adversarial.r1.second_derivatives
    r1 = "none" if module.adversarial is None else "exact" if exact else "finite_difference"
    yield "", f"gradient_checkpointing {checkpointing}, r1 {r1}; compile is not considered"


def _composition(each: Pass) -> str:
    """What a pass consists of, largest first."""
    parts = sorted(each.peak.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {size / 1e9:.2f}" for name, size in parts if size > 5e6)


def _verdict(required: float) -> str:
    words = [f"{size} GB {'suffice' if required <= size * 1e9 else 'do not'}" for size in GPUS]
    return f"GPUs of {', '.join(words)}"


def _host_lines(budget: MemoryBudget) -> Iterator[tuple[str, str]]:
    yield "on the host", "of each process; checkpoint: of the first"
    for name, size in budget.host.items():
        if size:
            yield f"  {name}", _size(size)
    yield "  at the start", f"{_size(budget.building)}   teacher and networks, before they go to the GPU"
    yield "checkpoint", f"{_size(budget.checkpoint)}   on disk, each"


def remedies(module: Diffusion2GAN, setup: TrainingSetup, budget: MemoryBudget) -> Iterator[str]:
    """Settings that lower what a GPU needs, with their effect where it is plain; none if the smallest GPU suffices."""
    if budget.required <= GPUS[0] * 1e9:
        return
    totals = sorted((each.total for each in budget.passes), reverse=True)
    if budget.highest.name == R1 and module.adversarial.r1.second_derivatives:
        saved = totals[0] - totals[1]
        yield f"adversarial.r1: finite_difference (about {saved / 1e9:.1f} GB until another pass is the highest)"
    if not module.gradient_checkpointing:
        yield "gradient_checkpointing: true (most of every pass)"
    if module.micro_batch_count < setup.pairs and budget.highest.name != R1:
        yield f"accumulate: {2 * module.micro_batch_count}, or a smaller batch_size (up to half of the highest pass)"
    yield from _fixed_remedies(setup, budget)


def _fixed_remedies(setup: TrainingSetup, budget: MemoryBudget) -> Iterator[str]:
    parts, states = budget.parts, budget.parts["optimizer states"]
    if states > 1.5 * parts["weights"]:
        yield f"optimizers bitsandbytes.optim.AdamW8bit ({states * 0.74 / 1e9:.1f} GB)"
    if parts[AVERAGE] and setup.strategy != FSDP2:
        yield f"callbacks.ema on_cpu: true ({parts[AVERAGE] / 1e9:.1f} GB, on the host then)"
    if parts["text encoders"]:
        yield f"data embeddings, made by `diffgan pairs embed` ({parts['text encoders'] / 1e9:.1f} GB)"
    if SHARED in parts:
        return
    yield "lora in the model and in its discriminator: adapters beside weights that all networks share"
    if setup.strategy != FSDP2 and setup.processes > 1:
        yield "-c configs/strategies/fsdp.yaml: weights, gradients and states divided among the GPUs"
