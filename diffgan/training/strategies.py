"""Training several networks on many processes: sharding (FSDP2), double backward passes, gradient accumulation."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.overrides.distributed import _sync_module_states, prepare_for_backward
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from diffgan.errors import UserError
from diffgan.training.checkpoints import read_mapped, with_own_memory


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 over all processes. A checkpoint is one unsharded file, as with every other strategy."""

    def __init__(self):
        super().__init__(save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Check the file with `check_checkpoint` of the module, then load it shard by shard.

        A checkpoint may have fewer optimizers than the training: those after its last one start without a state.
        """
        path = self.broadcast(checkpoint_path)
        checkpoint = read_mapped(path, weights_only=True)
        self.lightning_module.check_checkpoint(checkpoint)
        optimizers = self.optimizers
        self.optimizers = optimizers[: len(checkpoint["optimizer_states"])]
        try:
            return with_own_memory(super().load_checkpoint(path, weights_only))
        finally:
            self.optimizers = optimizers


class NetworkDDPStrategy(DDPStrategy):
    """DDP of each trained network by itself: a backward pass averages the gradients of the network that moves alone.

    Lightning's DDPStrategy wraps the whole module, and each backward pass then averages the gradients of all networks,
    zeros where a network stands still. Checkpoints are the same. A module without `networks` is wrapped as there.
    """

    def __init__(self):
        super().__init__(find_unused_parameters=True, gradient_as_bucket_view=True)  # R1 does not use every bias
        self._wrapped: list[DistributedDataParallel] = []

    def configure_ddp(self) -> None:
        """Wrap every network of the module; what is not trained starts equal on all processes too."""
        networks = getattr(self.lightning_module, "networks", {})
        if not networks:
            super().configure_ddp()
            return
        _sync_module_states(self.lightning_module)
        self._wrapped = [self._setup_model(network) for network in networks.values()]

    def pre_backward(self, closure_loss: Tensor) -> None:
        """Prepare the averaging of the gradients of the networks whose weights require some now."""
        super().pre_backward(closure_loss)
        for wrapped in self._wrapped:
            if any(parameter.requires_grad for parameter in wrapped.module.parameters()):
                prepare_for_backward(wrapped, closure_loss)

    @contextlib.contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Context in which backward passes add up gradients on each process."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(super().block_backward_sync())
            for wrapped in self._wrapped:
                stack.enter_context(wrapped.no_sync())
            yield

    def teardown(self) -> None:
        self._wrapped = []
        super().teardown()


def check_strategy(strategy: Strategy, networks: int) -> None:
    """Check that a strategy can train the networks of a method.

    Args:
        strategy: the trainer's strategy.
        networks: number of networks that are trained, each with its own optimizer.

    Raises:
        UserError: the strategy trains several networks incorrectly, or writes checkpoints that cannot be resumed.
    """
    if isinstance(strategy, FSDPStrategy):
        raise UserError(
            "FSDPStrategy does not support several networks with an optimizer each; "
            "use -c configs/strategies/fsdp.yaml (FSDP2)"
        )
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy):
        raise UserError(
            "ModelParallelStrategy cannot resume several networks with an optimizer each; "
            "use -c configs/strategies/fsdp.yaml"
        )
    if type(strategy) is DDPStrategy and networks > 1 and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise UserError(
            "DDP: the step of one network leaves the weights of the others unused; add -c configs/strategies/ddp.yaml"
        )


def shard(network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """Shard a network with FSDP2: each of `blocks`, then the remaining weights of the network, over `mesh`.

    The remaining weights are resharded after the forward pass too. FSDP2's default keeps them unsharded: then those of
    a forward pass without gradient would be used in the next one, and would silently get no gradient.
    """
    network.to(memory_format=torch.contiguous_format)  # FSDP2 supports no other
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """The unsharded tensor (collective: every process must call it); a tensor without shards is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over all processes (collective), in place; of one process the tensor itself.

    Strategies' own `reduce` has a barrier, in which the host waits for the GPU.
    """
    if not dist.is_available() or not dist.is_initialized():
        return tensor
    dist.all_reduce(tensor)
    return tensor.div_(dist.get_world_size())


@contextlib.contextmanager
def keep_unsharded(network: nn.Module) -> Iterator[None]:
    """Context manager for a double backward pass: FSDP2 keeps the weights unsharded after the first backward pass."""
    sharded = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()


@contextlib.contextmanager
def gradient_sync(module: pl.LightningModule, network: nn.Module, now: bool) -> Iterator[None]:
    """Context manager for gradient accumulation: backward passes inside average gradients over processes if `now`.

    If not `now`, gradients are only added up on each process. Pass True for the last micro-batch.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        yield
    elif now or not hasattr(module.trainer.strategy, "block_backward_sync"):
        yield
    else:
        with module.trainer.strategy.block_backward_sync():
            yield
