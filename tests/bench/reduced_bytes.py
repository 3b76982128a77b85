"""Bytes of gradients that a training step averages over processes."""

import json
from pathlib import Path

import lightning.pytorch as pl
from torch.profiler import ProfilerActivity, profile

COLLECTIVES = ("gloo:all_reduce", "nccl:all_reduce")
SMALLEST = 256  # elements: losses and counts are smaller


class ReducedBytes(pl.Callback):
    """Writes the bytes of each batch's gradients, a list, to `file`; only the first process does.

    Args:
        file: JSON.
    """

    def __init__(self, file: Path):
        self.file, self.bytes = file, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
        self.profile.__enter__()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.profile.__exit__(None, None, None)
        self.bytes.append(sum(4 * elements for elements in reduced(self.profile)))

    def on_train_end(self, trainer, pl_module) -> None:
        weights = {
            name: 4 * sum(weight.numel() for weight in network.parameters())
            for name, network in pl_module.networks.items()
        }
        if trainer.is_global_zero:
            self.file.write_text(json.dumps({"bytes": self.bytes, "weights": weights}))


def reduced(record: profile) -> list[int]:
    """Elements of each reduced bucket of gradients."""
    sizes = [event.input_shapes for event in record.events() if event.name in COLLECTIVES]
    return [shapes[0][0] for shapes in sizes if shapes and shapes[0] and shapes[0][0] > SMALLEST]
