"""Manual optimization of several networks in turn, on a clock that counts images."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffgan.errors import UserError
from diffgan.nets.lora import trainable
from diffgan.training import checkpoints
from diffgan.training.refusals import stop_together
from diffgan.training.strategies import full_tensor, gradient_sync

UNREAD_NORMS = 8  # gradient norms after which the host waits for the device once to read them


class OptimizerSettings(NamedTuple):
    """How one network is optimized.

    optimizer: called with the network's parameters.  learning_rate: images seen -> factor of the optimizer's own rate.
    clip_norm: largest norm of the gradient.  starts_at_images: images seen before the first step.
    """

    optimizer: OptimizerCallable
    learning_rate: Callable[[int], float]
    clip_norm: float
    starts_at_images: int = 0


def skip_unless_finite(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], norm: Tensor) -> None:
    """Prevent an optimizer's next step from using a gradient that is not finite, without asking the device.

    Fused optimizers skip the whole step; others take it with zeros in place of NaN and infinity.

    Args:
        optimizer: whose step follows.
        gradients: of its weights.
        norm: of all of them, ().
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = norm.isfinite().logical_not().float()
        return
    for gradient in gradients:
        torch.nan_to_num_(gradient, 0.0, 0.0, 0.0)


class AlternatingOptimization(pl.LightningModule):
    """A module that trains several networks, each with its own optimizer, schedule and gradient clipping.

    Networks have short names ("g", "d"), which are also the groups of their curves. `images_seen` is a sum over all
    processes.

    Args:
        settings: how each network is optimized, by the network's name.
    """

    def __init__(self, settings: dict[str, OptimizerSettings]):
        super().__init__()
        self.automatic_optimization = False
        self.settings = settings
        self.networks: dict[str, nn.Module] = {}  # by name, in the order of `settings`; set by configure_model
        self.images_seen = 0
        self.observed: dict[str, Tensor] = {}  # values of the newest batch, (), by curve
        self.last_checkpoint: Path | None = None  # set by the ImageCheckpoint callback
        self._unread_norms: list[tuple[int, str, Tensor]] = []  # of the newest steps: images seen, network, norm

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimizer for each network, in the order of `build_networks`."""
        optimizers = {
            name: self.settings[name].optimizer(trainable(network)) for name, network in self.networks.items()
        }
        self._name_of_optimizer = {id(optimizer): name for name, optimizer in optimizers.items()}
        self._learning_rates = {}  # read now: the optimizers of a checkpoint bring the rates of its last step
        for name, optimizer in optimizers.items():
            self._learning_rates[name] = [group["lr"] for group in optimizer.param_groups]
        return list(optimizers.values())

    def _optimizers_by_name(self) -> dict[str, LightningOptimizer]:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        return dict(zip(self.networks, optimizers, strict=True))

    @contextlib.contextmanager
    def optimizing(self, name: str) -> Iterator[LightningOptimizer]:
        """Context of one network's step: its learning rate is set, the other networks' weights get no gradient.

        Gradients are cleared on exit.
        """
        optimizer = self._optimizers_by_name()[name]
        factor = self.settings[name].learning_rate(self.images_seen)
        for group, learning_rate in zip(optimizer.param_groups, self._learning_rates[name], strict=True):
            group["lr"] = factor * learning_rate
        with self.toggled_optimizer(optimizer):
            yield optimizer
            optimizer.zero_grad()

    def accumulate(self, name: str, *columns: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
        """Iterate over micro-batches: the network's gradients are averaged over processes at the last one only.

        Args:
            name: of the network whose gradients are accumulated.
            columns: sequences with one item for each micro-batch; one item of each is yielded at a time.
        """
        micro_batches = list(zip(*columns, strict=True))
        for i, items in enumerate(micro_batches):
            # Lightning 2.6 caches no casts of autocast, others do: a cast from a pass without gradient may have none.
            torch.clear_autocast_cache()
            with gradient_sync(self, self.networks[name], i == len(micro_batches) - 1):
                yield items

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Observe and clip the norm of the gradient on the device; skip the step if the norm is not finite."""
        name = self._name_of_optimizer[id(optimizer)]
        if len(self._unread_norms) >= UNREAD_NORMS:
            self.check_gradients()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = get_total_norm(gradients)
        clip_grads_with_norm_(parameters, self.settings[name].clip_norm, norm)
        norm = full_tensor(norm)
        skip_unless_finite(optimizer, gradients, norm)
        self.observed[f"{name}/gradient_norm"] = norm
        self._unread_norms.append((self.images_seen, name, norm))

    def check_gradients(self) -> None:
        """Read the norms of the newest steps from the device.

        Raises:
            UserError, SystemExit: as `stop`, if one was not finite. Its step was skipped.
        """
        norms, self._unread_norms = self._unread_norms, []
        values = torch.stack([norm for *_, norm in norms]).tolist() if norms else []
        for (images_seen, name, _), value in zip(norms, values, strict=True):
            if not math.isfinite(value):
                self.stop(f"{name}: the gradient's norm was {value} after {images_seen}; lower the learning rate")

    def on_train_end(self) -> None:
        """Read the last norms."""
        self.check_gradients()

    def clear_idle_optimizers(self) -> None:
        """Undo the step at learning rate 0 that FSDP2 makes an optimizer without state take when it saves or loads."""
        for name, optimizer in self._optimizers_by_name().items():
            if self.images_seen <= self.settings[name].starts_at_images:
                optimizer.state.clear()

    def stop(self, reason: str) -> None:
        """End a run that went wrong and name the last good checkpoint (collective).

        Raises:
            UserError, SystemExit: as `stop_together`.
        """
        good = _last_good(self.last_checkpoint)
        message = f"stopped after {self.images_seen} images: {reason}. Last good checkpoint: {good}"
        stop_together(self.trainer, UserError(message))


def _last_good(last: Path | None) -> Path | None:
    """The newest checkpoint from before the run went wrong, or else the newest one."""
    good = last and last.with_name(checkpoints.GOOD)
    return good if good and good.is_file() else last
