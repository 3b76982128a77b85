"""A default device other than the CPU, as Lightning sets the GPU while it calls `configure_model`."""

import contextlib
from collections.abc import Iterator

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy


class MetaAsDefault(SingleDeviceStrategy):
    """Trains on the CPU. Tensors that `configure_model` creates without naming a device have no values (meta)."""

    def __init__(self):
        super().__init__(device=torch.device("cpu"))

    @contextlib.contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Iterator[None]:
        with torch.device("meta"):
            yield


class NothingToMove:
    """Mixin of small stand-ins for a distillation whose `teacher` and `generator_ema` are on the device already."""

    def teacher_on_device(self, denoiser=True):
        return contextlib.nullcontext(self.teacher)

    def average_on_device(self):
        return contextlib.nullcontext(self.generator_ema)
