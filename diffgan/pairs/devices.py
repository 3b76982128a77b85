"""What computes a batch of pairs, and in which precision: two devices of one kind round alike."""

import platform
from pathlib import Path

import torch

from diffgan.errors import UserError

CUDA_ONLY = "16-mixed"  # Lightning's name; on a CPU Lightning would take bfloat16 in its place


def device_kind(device: torch.device | str) -> str:
    """The kind of a device, such as "NVIDIA H100 80GB HBM3"; of a CPU its model and this process's threads."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return f"{device.type} {platform.machine()}"
    threads = torch.get_num_threads()
    return f"CPU {_cpu_model()}, {threads} thread{'s' * (threads > 1)}"


def this_device() -> torch.device:
    """The device on which this machine makes pairs if nothing else is asked for: Lightning's choice."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def require_precision(asked: str | int | None, given: str) -> None:
    """Refuse float16 where Lightning has silently replaced it.

    Args:
        asked: `precision` of the trainer's configuration.
        given: `Trainer.precision`.

    Raises:
        UserError: they differ, because there is no GPU.
    """
    if str(asked) in (CUDA_ONLY, "16") and given != CUDA_ONLY:
        raise UserError(f"trainer.precision: {asked} requires a GPU; use 32-true or bf16-mixed on a CPU")


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="replace").splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()
