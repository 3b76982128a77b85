"""The equations of `heads` as one Triton kernel per tap and direction, for GPUs.

The kernels read each feature once and keep a block of positions in registers. The formula written with operations of
torch reads and writes some twenty float32 maps of the taps' size, which on a GPU take half as long as the convolutions.
Sums are over blocks in a fixed order, so results are repeatable.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # features of one map in the registers of a program


class _Tap(NamedTuple):
    """Numbers of a feature map: channels, positions, positions per program, and programs per sample."""

    channels: int
    positions: int
    rows: int
    programs: int

    @classmethod
    def of(cls, features: Tensor) -> "_Tap":
        _, channels, height, width = features.shape
        rows = max(1, BLOCK // triton.next_power_of_2(channels))
        return cls(channels, height * width, rows, triton.cdiv(height * width, rows))


def distances(features: Sequence[Tensor], targets: Sequence[Tensor], heads: Sequence[Tensor], eps: float) -> Tensor:
    """The sum of `heads.tap_distance` over taps, (N,) float32.

    Args:
        features, targets: for each tap (N, C, H, W), on one GPU, in float32 or a lower precision.
        heads: for each tap (C,) float32.
        eps: as in `heads.normalize_channels`.
    """
    taps = [_Tap.of(tensor) for tensor in features]
    total, first = sum(tap.programs for tap in taps), 0
    sums = torch.empty(len(features[0]), total, device=features[0].device)
    for tap, feature, target, head in zip(taps, features, targets, heads, strict=True):
        arguments = (_by_position(feature), _by_position(target), head, sums, tap.positions, total, first, eps)
        with torch.cuda.device_of(feature):  # Triton launches on the current device
            _distance[len(feature) * tap.programs,](*arguments, **_constants(tap))
        first += tap.programs
    return sums.sum(1)


def gradient(features: Tensor, target: Tensor, head: Tensor, eps: float, grad_output: Tensor) -> Tensor:
    """The gradient of one tap's distance in `features`, times `grad_output`, (N,): (N, C, H, W)."""
    tap, features = _Tap.of(features), _by_position(features)
    result = torch.empty_like(features)
    arguments = (features, _by_position(target), head, grad_output.contiguous(), result, tap.positions, eps)
    with torch.cuda.device_of(features):
        _gradient[len(features) * tap.programs,](*arguments, **_constants(tap))
    return result


def _by_position(features: Tensor) -> Tensor:
    """The channels of a position side by side in memory."""
    return features.contiguous(memory_format=torch.channels_last)


def _constants(tap: _Tap) -> dict[str, int]:
    width = triton.next_power_of_2(tap.channels)
    return {"CHANNELS": tap.channels, "WIDTH": width, "ROWS": tap.rows, "PROGRAMS": tap.programs}


@triton.jit
def _load(tensor, sample, block, positions, CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """(ROWS, WIDTH) float32 of one block of positions, zero outside the map, and where they are in memory."""
    row = block * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, WIDTH)
    offsets = sample.to(tl.int64) * positions * CHANNELS + row[:, None] * CHANNELS + channel[None, :]
    inside = (row[:, None] < positions) & (channel[None, :] < CHANNELS)
    return tl.load(tensor + offsets, mask=inside, other=0.0).to(tl.float32), offsets, inside


@triton.jit
def _inverse_norm(features, eps):
    return tl.rsqrt(tl.sum(features * features, 1) + eps)[:, None]


@triton.jit
def _distance(
    features, target, head, sums, positions, total, first, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    sample, block = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS
    f, _, _ = _load(features, sample, block, positions, CHANNELS, WIDTH, ROWS)
    t, _, _ = _load(target, sample, block, positions, CHANNELS, WIDTH, ROWS)
    channel = tl.arange(0, WIDTH)
    h = tl.load(head + channel, mask=channel < CHANNELS, other=0.0)
    difference = f * _inverse_norm(f, eps) - t * _inverse_norm(t, eps)
    value = tl.sum(tl.sum(difference * difference * h[None, :], 1), 0)
    tl.store(sums + sample * total + first + block, value / positions)


@triton.jit
def _gradient(
    features, target, head, grad_output, result, positions, eps,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    """With u = f / |f|: dd/du = 2 h (u - v) / positions, and du/df = (1 - u u^T) / |f|."""
    sample, block = tl.program_id(0) // PROGRAMS, tl.program_id(0) % PROGRAMS
    f, offsets, inside = _load(features, sample, block, positions, CHANNELS, WIDTH, ROWS)
    t, _, _ = _load(target, sample, block, positions, CHANNELS, WIDTH, ROWS)
    channel = tl.arange(0, WIDTH)
    h = tl.load(head + channel, mask=channel < CHANNELS, other=0.0)
    factor = 2.0 * tl.load(grad_output + sample) / positions
    inverse = _inverse_norm(f, eps)
    unit = f * inverse
    grad_unit = factor * h[None, :] * (unit - t * _inverse_norm(t, eps))
    grad = inverse * (grad_unit - unit * tl.sum(unit * grad_unit, 1)[:, None])
    tl.store(result + offsets, grad.to(result.dtype.element_ty), mask=inside)
