"""Parts 2 and 6: training steps of Stable Diffusion 1.5 and XL in full size, against their bare network passes."""

from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.pairs.batch import PairBatch
from tests.bench.adversarial_step import network_passes
from tests.gpu.networks import SD15, SDXL, RandomDistillation, adversarial_training, random_teacher
from tests.gpu.parts import Cell, NotApplicable, Setting
from tests.gpu.timing import GB, matmul_rate
from tests.gpu.training import WARM_UP, Measured, RandomPairData, RandomPairs, bare_seconds, fit

STEPS, BARE_ROUNDS = 3, 2
LARGE_GPU = 130  # GB, for the adversarial step of SDXL
COMPILE_SECONDS = {False: 90.0, True: 200.0}  # expected of a regression and an adversarial cell that compiles


class Step(NamedTuple):
    """A training step: of `name`'s networks, with the discriminator or by regression alone."""

    name: str
    adversarial: bool
    batch: int
    checkpointing: bool = True
    channels_last: bool = True
    compile: bool = False

    def title(self) -> str:
        """Its row in the table."""
        kind = "adversarial" if self.adversarial else "regression"
        options = ("checkpointing" if self.checkpointing else "everything kept",)
        options += () if self.channels_last else ("contiguous",)
        options += ("compiled",) if self.compile else ()
        return ", ".join((kind, f"batch {self.batch}", *options))


ADVERSARIAL, REGRESSION = partial(Step, SD15, True), partial(Step, SD15, False)
SD15_STEPS = (  # in order of value
    ADVERSARIAL(32),
    REGRESSION(32),
    ADVERSARIAL(16),
    ADVERSARIAL(32, channels_last=False),
    ADVERSARIAL(8),
    REGRESSION(32, checkpointing=False),
    ADVERSARIAL(8, checkpointing=False),
    REGRESSION(32, channels_last=False),
    REGRESSION(16),
    REGRESSION(8),
    REGRESSION(8, checkpointing=False),
    ADVERSARIAL(16, checkpointing=False),
)
SD15_COMPILED = (REGRESSION(32, compile=True), ADVERSARIAL(32, compile=True))
TINY_STEPS = (ADVERSARIAL(4), REGRESSION(4), ADVERSARIAL(4, checkpointing=False, channels_last=False))


def sd15_cells(setting: Setting) -> list[Cell]:
    """Part 2; what compiles is put off."""
    compiled = [
        Cell(step.title(), partial(_compiled, setting, step), COMPILE_SECONDS[step.adversarial], last=True)
        for step in SD15_COMPILED
    ]
    steps = setting.choose(SD15_STEPS, TINY_STEPS)
    return [Cell(step.title(), partial(measure, setting, step)) for step in steps] + compiled


def sdxl_cells(setting: Setting) -> list[Cell]:
    """Part 6."""
    steps = [Step(SDXL, False, setting.choose(4, 2)), Step(SDXL, True, setting.choose(4, 2))]
    return [Cell(step.title(), partial(measure, setting, step)) for step in steps]


def _compiled(setting: Setting, step: Step) -> dict[str, Any]:
    setting.require_cuda()
    return measure(setting, step)


def measure(setting: Setting, step: Step) -> dict[str, Any]:
    """Train for a few batches, then time the same passes bare, on the same networks.

    The first batch, which is not timed, has the gradient penalty.
    """
    if setting.device.type == "cuda" and step.name == SDXL and step.adversarial and setting.memory() < LARGE_GPU * GB:
        raise NotApplicable(f"needs {LARGE_GPU} GB")
    teacher = random_teacher(setting, step.name)
    pairs = RandomPairs(teacher)
    module = RandomDistillation(teacher, setting, step.batch * (WARM_UP + STEPS), **_options(step))
    del teacher
    measured = Measured(partial(_bare, setting, step))
    fit(setting, module, RandomPairData(pairs, step.batch), [measured])
    return _values(setting, step, measured)


def _options(step: Step) -> dict[str, Any]:
    """Arguments of `Diffusion2GAN`."""
    r1 = "finite_difference" if step.name == SDXL else "exact"  # as in the recipes
    return {
        "adversarial": adversarial_training(r1) if step.adversarial else None,
        "gradient_checkpointing": step.checkpointing,
        "channels_last": step.channels_last,
        "compile": step.compile,
    }


def _bare(setting: Setting, step: Step, module: Diffusion2GAN, batch: PairBatch) -> dict[str, float]:
    """FLOPs of the bare passes on one image, then their seconds."""
    flops = setting.once(_flops_name(step), lambda: _flops_per_image(module, batch))
    return {"flops": flops * step.batch, "seconds": bare_seconds(module, batch, BARE_ROUNDS)}


def _flops_name(step: Step) -> str:
    return f"FLOPs {step.name} {step.adversarial} {step.checkpointing}"


def _flops_per_image(module: Diffusion2GAN, batch: PairBatch) -> float:
    """FLOPs of one image's bare passes; activations that are computed again count again."""
    one = PairBatch(batch.seed[:1], batch.noise[:1], batch.prompt[:1], batch.latent[:1])
    conditioning = module.encode(batch).map(lambda tensor: tensor[:1])
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        network_passes(module, one.noise, one.latent, conditioning)
    return float(counter.get_total_flops())


def _values(setting: Setting, step: Step, measured: Measured) -> dict[str, Any]:
    seconds, bare = measured.step_seconds(), measured.found
    rate = bare["flops"] / seconds
    return {
        "s/step": seconds,
        "images/s": step.batch / seconds,
        "ratio to bare passes": seconds / bare["seconds"],
        "peak GB": measured.peak,
        "without R1": measured.later_peak,
        "TFLOP/s": rate / 1e12,
        "share of matmul": rate / setting.once("matmul rate", lambda: matmul_rate(setting)),
    }
