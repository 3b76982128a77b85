"""Refusals on several processes: all end when one of them refuses."""

import contextlib
from collections.abc import Iterator

import lightning.pytorch as pl
import torch

from diffgan.errors import UserError, print_error


@contextlib.contextmanager
def refusing_together(trainer: pl.Trainer | None) -> Iterator[None]:
    """Context that every process of a trainer enters; a UserError in any of them stops all, as `stop_together`."""
    refusal = None
    try:
        yield
    except UserError as error:
        refusal = error
    stop_together(trainer, refusal)


def stop_together(trainer: pl.Trainer | None, refusal: UserError | None) -> None:
    """Stop all processes of a trainer if one of them refuses; otherwise the others would wait for it for ever.

    Of several processes the first that refuses prints why, before a launcher notices that others exit and ends it.

    Args:
        trainer: None is one process.
        refusal: why this process refuses; None if it does not.

    Raises:
        UserError: the only process refuses.
        SystemExit: one of several does.
    """
    if trainer is None or trainer.world_size == 1:
        if refusal is not None:
            raise refusal
        return
    rank = trainer.world_size if refusal is None else trainer.global_rank
    rank_tensor = torch.tensor(rank, device=trainer.strategy.root_device)
    first = int(trainer.strategy.reduce(rank_tensor, reduce_op="min"))
    if first < trainer.world_size:
        if first == trainer.global_rank:
            print_error(refusal)
        trainer.strategy.barrier()
        raise SystemExit(1)
