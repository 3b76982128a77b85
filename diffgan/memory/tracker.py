"""Live tensor memory during simulated computations, by label, and its peak."""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GRADIENTS = "gradients"


class MemoryTracker(TorchDispatchMode):
    """Counts the bytes of the storages that operations allocate, from their creation until they are freed.

    A storage carries the label that was current at its creation; accumulated gradients of `follow_gradients` carry
    `GRADIENTS`. Memory that kernels use inside an operation is not seen, nor is the rounding of an allocator.

    Args:
        gradient_share: factor of the bytes of gradients: 1 / processes where they are sharded, 0 where the
            gradients lie in memory that is counted elsewhere.

    Attributes:
        live: bytes by label, now.
        peak: bytes by label at the moment of the highest sum, since the last `measure` began.
    """

    def __init__(self, gradient_share: float = 1.0):
        super().__init__()
        self.gradient_share = gradient_share
        self.live: dict[str, float] = {}
        self.peak: dict[str, float] = {}
        self._total = self._highest = 0.0
        self._label = ""
        self._storages: dict[int, tuple[float, str] | None] = {}  # by address: bytes and label, None if ignored

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count these tensors, which exist already: weights and inputs."""
        for tensor in tensors:
            self._storages[tensor.untyped_storage()._cdata] = None

    def follow_gradients(self, weights: Iterable[nn.Parameter]) -> None:
        """Label the gradients that backward passes accumulate on a network's trained weights."""
        for parameter in weights:
            parameter.register_post_accumulate_grad_hook(lambda weight: self._relabel(weight.grad, GRADIENTS))

    @contextlib.contextmanager
    def measure(self, label: str) -> Iterator[None]:
        """Context of one pass: new storages carry `label`, and `peak` is that of this pass alone."""
        self._label, self.peak, self._highest = label, dict(self.live), self._total
        yield

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if isinstance(output, Tensor):
            self._count(output)
        elif isinstance(output, tuple | list):
            for tensor in tree_leaves(output):
                if isinstance(tensor, Tensor):
                    self._count(tensor)
        return output

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._storages:
            return
        size = float(storage.nbytes())
        self._storages[address] = (size, self._label)
        weakref.finalize(storage, self._free, address).atexit = False
        self._add(size, self._label)

    def _relabel(self, tensor: Tensor, label: str) -> None:
        address = tensor.untyped_storage()._cdata
        entry = self._storages.get(address)
        if entry is None or entry[1] == label:
            return
        size = entry[0]
        share = size * self.gradient_share
        self._storages[address] = (share, label)
        self._add(-size, entry[1])
        self._add(share, label)

    def _free(self, address: int) -> None:
        size, label = self._storages.pop(address)
        self._add(-size, label)

    def _add(self, size: float, label: str) -> None:
        self.live[label] = self.live.get(label, 0.0) + size
        self._total += size
        if self._total > self._highest:
            self._highest, self.peak = self._total, dict(self.live)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each storage once."""
    sizes = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def module_bytes(module: nn.Module) -> int:
    """Bytes of a module's weights and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def weight_bytes(parameters: Iterable[nn.Parameter], dtype: torch.dtype) -> int:
    """Bytes of weights in a dtype."""
    return sum(weight.numel() * dtype.itemsize for weight in parameters)
