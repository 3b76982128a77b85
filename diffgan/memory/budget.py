"""The memory of a training on each GPU and on the host: fixed parts, passes, and what is added for CUDA itself."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from diffgan.memory.drawing import Drawing, drawing_bytes
from diffgan.memory.simulation import R1, VALIDATION, Pass, build_networks, simulate_step
from diffgan.memory.tracker import module_bytes, weight_bytes
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.lora import trainable
from diffgan.teachers.base import Teacher
from diffgan.training.sharing import names_shared, own_bytes

SINGLE, DDP, DDP_COPIES, FSDP2 = "one process", "DDP", "DDP without gradient_as_bucket_view", "FSDP2"
CONTEXT = 0.6e9  # bytes: CUDA context and the libraries' handles
COMMUNICATION = 0.5e9  # bytes: NCCL's buffers
FRAGMENTATION = 0.03  # share of a pass's tensors that the allocator reserves and cannot use
# Share of the exact penalty's tensors that is added to them. Fitted to one measurement: on an H100 the exact penalty of
# SD1.5 took 24.5 GB above weights and gradients, and its tensors are 17.5 GB. That kernels (such as convolutions whose
# kernels are latents) use the rest as workspace is a guess.
R1_WORKSPACE = 0.4
WORKSPACE = "kernel workspaces"
GATHERED = "gathered weights"
AVERAGE = "moving average"
SHARED = "shared weights (LoRA)"


class TrainingSetup(NamedTuple):
    """What the memory of a training depends on beside its module.

    pairs: of one process and batch.  processes: in all.  strategy: one of the four names above.
    mixed: bf16-mixed precision.  embeddings: text is read with the pairs.  ema_on_cpu: the average is on the host.
    asynchronous: checkpoints are written from a copy on the host.  drawings: of callbacks.
    """

    pairs: int
    processes: int = 1
    strategy: str = SINGLE
    mixed: bool = True
    embeddings: bool = False
    ema_on_cpu: bool = False
    asynchronous: bool = False
    drawings: tuple[Drawing, ...] = ()

    @property
    def shards(self) -> int:
        """Processes among which weights, gradients and states are divided."""
        return self.processes if self.strategy == FSDP2 else 1


class MemoryBudget(NamedTuple):
    """Bytes on each GPU and on the host.

    parts: during the whole training, by name.  passes: of a training step, above the parts.
    drawings: of callbacks, above the parts.  host: of each process, by name.
    building: on the host of each process, before the networks go to the GPU.
    allowance: for CUDA itself, communication and fragmentation.  checkpoint: a file's size.
    weights: number of trained weights by network.
    """

    parts: dict[str, float]
    passes: list[Pass]
    drawings: dict[Drawing, float]
    allowance: float
    host: dict[str, float]
    building: float
    checkpoint: float
    weights: dict[str, int]

    @property
    def fixed(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def highest(self) -> Pass:
        """The pass with the highest peak."""
        return max(self.passes, key=lambda each: each.total)

    @property
    def peak(self) -> float:
        """The highest memory of tensors during training."""
        return self.fixed + self.highest.total

    @property
    def drawing(self) -> float:
        """The most that a callback's drawing takes above the parts; 0 if none draws."""
        return max(self.drawings.values(), default=0.0)

    @property
    def required(self) -> float:
        """What a GPU must have: the peak of training or of drawing, and the allowance."""
        return max(self.peak, self.fixed + self.drawing) + self.allowance


def plan_memory(module: Diffusion2GAN, teacher: Teacher, setup: TrainingSetup) -> MemoryBudget:
    """Simulate a training step and add up everything that is in memory beside it.

    Args:
        module: not yet configured; its networks are built here, without values.
        teacher: on the meta device.
        setup: how it is trained.

    Raises:
        UserError: an optimizer cannot be simulated.
    """
    build_networks(module, teacher)
    base = teacher.denoiser
    sizes = {name: own_bytes(network, base) for name, network in module.networks.items()}
    is_shared = any(names_shared(network, base) for network in module.networks.values())
    share = {SINGLE: 1.0, DDP: 0.0, DDP_COPIES: 1.0, FSDP2: 1 / setup.shards}[setup.strategy]
    step = simulate_step(module, setup.pairs, setup.mixed, setup.processes, share)
    states = sum(step.states.values())
    parts = _parts(module, teacher, setup, sizes, states)
    if is_shared:
        parts[SHARED] = float(module_bytes(base))
    passes = [_complete(each, module, setup, sizes) for each in step.passes]
    return MemoryBudget(
        parts,
        passes,
        _drawings(teacher, setup, sizes["g"], is_shared),
        _allowance(setup, passes),
        _host(teacher, setup, sizes, states, is_shared),
        float(module_bytes(teacher) + sum(sizes.values()) + sizes["g"]),
        checkpoint_bytes(sizes, states),
        {name: sum(weight.numel() for weight in trainable(network)) for name, network in module.networks.items()},
    )


def _parts(
    module: Diffusion2GAN, teacher: Teacher, setup: TrainingSetup, sizes: dict[str, int], states: int
) -> dict[str, float]:
    """What is on a GPU all the time."""
    weights = sum(sizes.values())
    parts = {
        "weights": weights / setup.shards,
        "optimizer states": states / setup.shards,
        AVERAGE: 0 if setup.ema_on_cpu else sizes["g"] / setup.shards,
        "gradient buckets": weights if setup.strategy in (DDP, DDP_COPIES) else 0,
        "perceptual network": module_bytes(module.regression),
        "text encoders": 0 if setup.embeddings else _text_bytes(teacher, setup.mixed),
    }
    return {name: float(size) for name, size in parts.items()}


def _text_bytes(teacher: Teacher, mixed: bool) -> int:
    dtype = torch.bfloat16 if mixed else torch.float32
    return sum(weight_bytes(encoder.parameters(), dtype) for encoder in teacher.text_encoders)


def _complete(each: Pass, module: Diffusion2GAN, setup: TrainingSetup, sizes: dict[str, int]) -> Pass:
    """A pass with what its simulation does not allocate."""
    peak = dict(each.peak)
    if setup.strategy == FSDP2 and each.network:
        network = module.networks[each.network]
        keep_unsharded = each.name == R1
        peak[GATHERED] = gathered_bytes(network, network.blocks(), each.backward, keep_unsharded)
    if each.name == R1 and module.adversarial.r1.second_derivatives:
        peak[WORKSPACE] = R1_WORKSPACE * each.peak.get(R1, 0.0)
    if each.name == VALIDATION and setup.ema_on_cpu:
        peak[AVERAGE] = sizes["g"]
    return each._replace(peak=peak)


def gathered_bytes(network: nn.Module, blocks: Iterable[nn.Module], backward: bool, keep_unsharded: bool) -> float:
    """The most that FSDP2 adds while a network computes, in float32 (no mixed-precision policy).

    The remaining weights are gathered during the whole pass. Beside a block's weights there are those of the next
    block, with the buffer they are received in; in a backward pass also the block's gradient and the buffer that it is
    reduced from.

    Args:
        network: sharded by `blocks`, in the order of its forward pass.
        backward: of a pass with a backward pass.
        keep_unsharded: all weights stay gathered until the end of the pass.
    """
    sizes = [module_bytes(block) for block in blocks]
    root = module_bytes(network) - sum(sizes)
    if keep_unsharded:
        return root + sum(sizes) + 2 * max(sizes)
    order = sizes[::-1] if backward else sizes
    following = [*order[1:], 0]
    copies = 3 if backward else 1
    return root + max(copies * size + 2 * after for size, after in zip(order, following, strict=True))


def _drawings(teacher: Teacher, setup: TrainingSetup, generator: int, is_shared: bool) -> dict[Drawing, float]:
    """Bytes of each callback's drawing, with the text encoders and the average if they are lent for it."""
    lent = (generator if setup.ema_on_cpu else 0) + (_text_bytes(teacher, setup.mixed) if setup.embeddings else 0)
    return {each: lent + drawing_bytes(each, teacher, lent_network=not is_shared) for each in setup.drawings}


def _allowance(setup: TrainingSetup, passes: list[Pass]) -> float:
    highest = max(each.total for each in passes)
    return CONTEXT + (COMMUNICATION if setup.processes > 1 else 0) + FRAGMENTATION * highest


def checkpoint_bytes(sizes: dict[str, int], states: int) -> float:
    """Bytes of a checkpoint: networks, moving average and optimizer states, whatever the strategy."""
    return float(sum(sizes.values()) + sizes["g"] + states)


def _host(
    teacher: Teacher, setup: TrainingSetup, sizes: dict[str, int], states: int, is_shared: bool
) -> dict[str, float]:
    """Bytes on the host for each process; those of checkpoints in the first process alone.

    FSDP2 gathers a checkpoint there, and an asynchronous one is copied there: what was gathered too.
    """
    copies = setup.asynchronous + (setup.strategy == FSDP2)
    host = {
        "teacher": module_bytes(teacher) - (module_bytes(teacher.denoiser) if is_shared else 0),
        AVERAGE: sizes["g"] if setup.ema_on_cpu else 0,
        "checkpoint": copies * checkpoint_bytes(sizes, states),
    }
    return {name: float(size) for name, size in host.items()}
