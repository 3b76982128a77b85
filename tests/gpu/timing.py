"""Time and memory on a device, and what the device can do at most."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.gpu.parts import Setting

GB = 1e9


def synchronize(device: torch.device) -> None:
    """Wait until the device has computed everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def mark(device: torch.device) -> Any:
    """A moment in the device's work; the host does not wait. See `seconds_between`."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def seconds_between(first: Any, second: Any) -> float:
    """Seconds from one `mark` to another; waits for the second."""
    if isinstance(first, float):
        return second - first
    second.synchronize()
    return first.elapsed_time(second) / 1000


def median_seconds(run: Callable[[], Any], device: torch.device, rounds: int = 3, times: int = 1) -> float:
    """Seconds of one call: the median of `rounds`, each of `times` calls in a row, after one call that warms up."""
    run()
    return statistics.median(_mean_seconds(run, device, times) for _ in range(rounds))


def _mean_seconds(run: Callable[[], Any], device: torch.device, times: int) -> float:
    synchronize(device)
    start = mark(device)
    for _ in range(times):
        run()
    return seconds_between(start, mark(device)) / times


def reset_peak(device: torch.device) -> int:
    """Begin to measure the peak; returns the bytes that are allocated now (0 on a CPU)."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_gb(device: torch.device, above: int = 0) -> float | None:
    """Peak since `reset_peak` in 10^9 bytes, above some bytes; None on a CPU."""
    return (torch.cuda.max_memory_allocated(device) - above) / GB if device.type == "cuda" else None


# ---- what the device can do ----


def matmul_rate(setting: Setting) -> float:
    """FLOP/s of a bf16 matrix product of random values, 8192 x 8192 x 8192."""
    side = setting.choose(8192, 256)
    a, b = (torch.randn(side, side, device=setting.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * side**3 / median_seconds(lambda: torch.matmul(a, b, out=out), setting.device, times=10)


def copy_rate(setting: Setting) -> float:
    """Bytes/s, read and written, of a copy on the device."""
    source = torch.empty(setting.choose(2**30, 2**22), dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return 2 * len(source) / median_seconds(lambda: target.copy_(source), setting.device, times=10)


def upload_rate(setting: Setting) -> float:
    """Bytes/s of a copy from pinned memory of the host."""
    setting.require_cuda()
    source: Tensor = torch.empty(2**28, dtype=torch.uint8, pin_memory=True)
    target = torch.empty_like(source, device=setting.device)
    return len(source) / median_seconds(lambda: target.copy_(source, non_blocking=True), setting.device, times=3)


def rates(setting: Setting) -> dict[str, float]:
    """The three rates in 10^12 FLOP/s and 10^9 bytes/s; part 2 compares with the first."""
    measured = {"bf16 matmul TFLOP/s": matmul_rate(setting) / 1e12, "copy GB/s": copy_rate(setting) / GB}
    if setting.device.type == "cuda":
        measured["upload GB/s"] = upload_rate(setting) / GB
    return measured
