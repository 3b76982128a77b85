"""What a training step asks of a GPU, counted without one: kernels, and what the host waits for.

The networks lie on the device `meta`, whose tensors have no values, and stand for those of a GPU; tensors on the CPU
have values as always. Every operation passes through `DeviceCalls`, which counts what the host of a GPU waits for:

    read      of a value of the device: `.item()`, `.tolist()`, `.cpu()`, `nonzero`, indexing with a mask
    upload    to the device that is not `non_blocking`, or of numbers written in Python (`torch.tensor`)

A read gives ones, so that the computation continues. Optimizers and clipping treat all tensors at once, as they do on a
GPU: such an operation counts as one kernel. Attention, which a GPU computes by one kernel, counts as nine. What CUDA
libraries wait for inside an operation is not seen.
"""

import collections
import contextlib
import importlib
import itertools
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

from callbacks.ema import EMA
from datamodules.latent_pairs import LatentPairs
from diffgan.losses.regression import Perceptual
from diffgan.methods.adversarial import AdversarialTraining
from diffgan.methods.diffusion2gan import Diffusion2GAN
from diffgan.nets.discriminator import MultiScaleDiscriminator
from diffgan.perceptual.heads import taps_distance
from diffgan.perceptual.latent_vgg import LatentVGG16
from diffgan.perceptual.lpips import ELatentLPIPS
from tests.bench.overhead import QUIET, training_pairs
from tests.bench.perceptual import convolutions, seeded_distance, step

BATCH = 8
DEVICE = torch.device("meta")
ROOT = Path(__file__).parents[2]
PACKAGES = ("diffgan", "callbacks", "datamodules")
aten = torch.ops.aten
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
FACTORIES = (torch.tensor, torch.as_tensor, Tensor.new_tensor)
OPTIMIZER = importlib.import_module("torch.optim.optimizer")
SUPPORTED = ("_get_foreach_kernels_supported_devices", "_get_fused_kernels_supported_devices")
WITHOUT_KERNEL = (aten.detach.default, aten._unsafe_view.default, aten.alias.default, aten.lift_fresh.default)


class DeviceCalls(TorchDispatchMode):
    """Context that counts the operations on the device.

    Attributes:
        kernels: operations that compute on the device, by name.
        waits: operations that the host waits for, by their kind and the line of this repository.
        uploaded: bytes copied to the device.
    """

    def __init__(self):
        super().__init__()
        self._numbers = _NumbersOfPython(self)
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.kernels: collections.Counter[str] = collections.Counter()
        self.waits: collections.Counter[tuple[str, str]] = collections.Counter()
        self.uploaded = 0

    def __enter__(self) -> "DeviceCalls":
        self._patches = contextlib.ExitStack()
        for module, name in itertools.product((_foreach_utils, OPTIMIZER), SUPPORTED):
            devices = [*getattr(module, name)(), DEVICE.type]
            self._patches.enter_context(mock.patch.object(module, name, lambda devices=devices: devices))
        self._numbers.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._numbers.__exit__(*error)
        self._patches.close()

    def wait(self, kind: str) -> None:
        """Count one operation that the host waits for."""
        self.waits[kind, _place()] += 1

    def __torch_dispatch__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function in (aten._to_copy.default, aten.copy_.default):
            return self._copy(function, args, kwargs)
        if _any_on_device(args):
            if function is aten._local_scalar_dense.default:
                self.wait("read")
                return torch.ones((), dtype=args[0].dtype, device="cpu").item()
            if function is aten.nonzero.default:
                self.wait("read")
                return torch.ones(1, args[0].dim(), dtype=torch.int64, device=DEVICE)
            if function in INDEXING:
                args = (args[0], self._index(args[1]), *args[2:])
        output = function(*args, **kwargs)
        if _any_on_device(output) and not function.is_view and function not in WITHOUT_KERNEL:
            self.kernels[function.name()] += "empty" not in function.name()
        return output

    def _index(self, indices: Iterable[Tensor | None]) -> list[Tensor | None]:
        """The indices; a mask becomes the indices of one true element, since meta tensors have no values."""
        without_masks = []
        for index in indices:
            if index is not None and index.dtype in (torch.bool, torch.uint8):
                self.wait("read")
                without_masks += [torch.zeros(1, dtype=torch.int64, device=DEVICE)] * index.dim()
                continue
            if index is not None and index.device != DEVICE:
                self.wait("upload")
            without_masks.append(index)
        return without_masks

    def _copy(self, function: Callable, args: tuple, kwargs: dict) -> Any:
        """A conversion or copy, on one device or from one to the other."""
        in_place = function is aten.copy_.default
        source = args[1] if in_place else args[0]
        target = args[0].device if in_place else kwargs.get("device") or source.device
        if source.device == DEVICE and target != DEVICE:
            self.wait("read")
            values = torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype, device=target)
            return args[0].copy_(values) if in_place else values
        if source.device == target:
            self.kernels[function.name()] += target == DEVICE
        else:
            self.uploaded += source.numel() * source.element_size()
            if not (kwargs.get("non_blocking") or args[2:3] == (True,)):
                self.wait("upload")
        return function(*args, **kwargs)


class _NumbersOfPython(TorchFunctionMode):
    """Sees numbers written in Python that become tensors of the device, before `DeviceCalls` could."""

    def __init__(self, calls: DeviceCalls):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if function in FACTORIES and output.device == DEVICE and not isinstance(args[-1], Tensor):
            self.calls.wait("upload")
        if function in (Tensor.__getitem__, Tensor.__setitem__) and args[0].device == DEVICE:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, list) for index in indices):
                self.calls.wait("upload")
        return output


def _any_on_device(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.device == DEVICE
    return isinstance(values, tuple | list) and any(map(_any_on_device, values))


def _place() -> str:
    """The innermost line of this repository's packages that is being run."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            return f"{path.relative_to(ROOT)}: {frame.line}"
    return "elsewhere"


# ---- a trainer on that device ----


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass


def on_device() -> dict[str, Any]:
    """Arguments of a trainer whose networks lie on the device."""
    return {"accelerator": _Accelerator(), "devices": 1, "strategy": SingleDeviceStrategy(device=DEVICE)}


# ---- the table ----


class _Table(pl.Callback):
    """Prints what each batch but the first asked of the device."""

    def __init__(self, calls: DeviceCalls, name: str):
        self.calls, self.name = calls, name

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx:
            penalised = self.name == "adversarial step" and batch_idx % 2 == 0
            report(self.calls, self.name + (" with R1" if penalised else ""))
        self.calls.reset()


def report(calls: DeviceCalls, name: str) -> None:
    """Print one row, and below it where the host waits."""
    waits = sum(calls.waits.values())
    print(
        f"{name:36} {sum(calls.kernels.values()):8} kernels {waits:4} waits {calls.uploaded / 2**10:8.1f} KiB uploaded"
    )
    for (kind, place), count in calls.waits.items():
        print(f"    {count} x {kind:6} {place}", flush=True)


def count_steps(folder: Path, adversarial: bool) -> None:
    """The second and third step of a training, with R1 at every other one."""
    optimizer = partial(torch.optim.AdamW, lr=1e-4, fused=True)
    settings = AdversarialTraining(MultiScaleDiscriminator, optimizer, r1_every=2) if adversarial else None
    regression = Perceptual(ELatentLPIPS(Path("glyphs")))
    module = Diffusion2GAN("glyphs", regression, optimizer, 3 * BATCH, adversarial=settings)
    calls = DeviceCalls()
    table = _Table(calls, "adversarial step" if adversarial else "regression step")
    limits = {"max_epochs": -1, "limit_val_batches": 0, "callbacks": [EMA(1000.0), table]}
    with calls:
        pl.Trainer(**on_device(), **limits, **QUIET).fit(module, LatentPairs(folder, BATCH, validation_pairs=0))


def count_distance() -> None:
    """Forward and backward pass of E-LatentLPIPS, of its network, and of its heads by operations of torch."""
    distance = seeded_distance(LatentVGG16(4), "bgo").to(DEVICE)
    generated = torch.empty(BATCH, 4, 64, 64, device=DEVICE).contiguous(memory_format=torch.channels_last)
    generated.requires_grad_(True)
    with torch.no_grad():
        taps = distance.network(generated.detach())
    leaves = [tap.detach().requires_grad_(True) for tap in taps]
    runs = {
        "E-LatentLPIPS": lambda: step(distance, generated, generated.detach()),
        "  its convolutions": lambda: convolutions(distance.network, generated, generated.detach()),
        "  its heads, by operations of torch": lambda: torch.autograd.grad(
            taps_distance(leaves, taps, list(distance.heads), distance.eps).sum(), leaves
        ),
    }
    for name, run in runs.items():
        with DeviceCalls() as calls:
            run()
        report(calls, name)
    print(f"  its heads, by the kernels for a GPU {2 * len(taps) + 1:8} kernels")


def main() -> None:
    torch.manual_seed(0)
    count_distance()
    with training_pairs() as folder:
        for adversarial in (False, True):
            count_steps(folder, adversarial)


if __name__ == "__main__":
    main()
