"""What two players need of many processes: sharding (FSDP2), unsharded weights for double backward, accumulation."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from diffgan.errors import UserError


class FSDP2Strategy(ModelParallelStrategy):
    """FSDP2 of all processes, with checkpoints that are one whole file, as `diffgan export` reads it."""

    def __init__(self):
        super().__init__(save_distributed_checkpoint=False)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Check the file before any shard takes its weights; a player it does not know begins here."""
        path = self.broadcast(checkpoint_path)
        whole = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        self.lightning_module.check_checkpoint(whole)
        players = self.optimizers
        self.optimizers = players[: len(whole["optimizer_states"])]
        try:
            return super().load_checkpoint(path, weights_only)
        finally:
            self.optimizers = players


def check_strategy(strategy: Strategy, players: int) -> None:
    """Raises UserError if a strategy cannot train two players, or writes what nothing here reads."""
    if isinstance(strategy, FSDPStrategy):
        raise UserError("FSDPStrategy trains two players wrongly; use -c configs/strategies/fsdp.yaml (FSDP2)")
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy):
        raise UserError("ModelParallelStrategy cannot resume two players; use -c configs/strategies/fsdp.yaml")
    if type(strategy) is DDPStrategy and players > 1 and not strategy._ddp_kwargs.get("find_unused_parameters"):
        raise UserError("DDP: each player's step leaves the other's weights unused; add -c configs/strategies/ddp.yaml")


def shard(network: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh) -> None:
    """FSDP2: these blocks of a network and its root become shards over `mesh`.

    The root lets its weights go after the forward pass too: it would otherwise keep those of a pass without gradient,
    and its own weights would silently get no gradient in the next one.
    """
    network.to(memory_format=torch.contiguous_format)  # FSDP2 takes no other
    for module in (*blocks, network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def full_tensor(tensor: Tensor) -> Tensor:
    """What the shards of a tensor make together (collective); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def keep_unsharded(network: nn.Module) -> Iterator[None]:
    """FSDP2: what is computed of the weights inside outlives a first backward pass, so a second one can follow."""
    shards = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_backward(False, recurse=False)
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_backward(True, recurse=False)
            module.reshard()


@contextlib.contextmanager
def gradient_sync(module: pl.LightningModule, network: nn.Module, now: bool) -> Iterator[None]:
    """Gradients of a backward pass inside are shared among processes if `now`, and only added up if not."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)
        yield
    elif now or not hasattr(module.trainer.strategy, "block_backward_sync"):
        yield
    else:
        with module.trainer.strategy.block_backward_sync():
            yield
