"""What a checkpoint of a distillation holds, and whether it fits."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line

FROZEN = ("teacher.", "regression.")  # rebuilt from the configuration, never in a checkpoint
GOOD = "good.ckpt"  # beside the last one: the newest from before a run went wrong


def contiguous(state: Any) -> Any:
    """The same dictionaries and lists with tensors in plain layout.

    A strategy that shards reads the numbers in this order, whatever the layout in memory was.
    """
    if isinstance(state, Tensor):
        return state.contiguous()
    if isinstance(state, dict):
        return {key: contiguous(value) for key, value in state.items()}
    return [contiguous(value) for value in state] if isinstance(state, list) else state


def keyed_by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's state with the names of weights in place of their numbers, which strategies count differently."""
    if "state" not in state:  # the state is on another process
        return state
    groups = [group | {"params": [_name(key, names) for key in group["params"]]} for group in state["param_groups"]]
    return {"state": {_name(key, names): value for key, value in state["state"].items()}, "param_groups": groups}


def _name(key: int | str, names: list[str]) -> str:
    return names[key] if isinstance(key, int) else key


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer's state the memory layout of the weights it belongs to, which fused kernels rely on."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


def check_weights(expected: dict[str, Tensor], found: dict[str, Tensor], teacher: str) -> None:
    """Raises UserError if the weights of a checkpoint are not the model's.

    A checkpoint without a discriminator is one of regression: D begins where it is continued.
    """
    left_out = FROZEN if any(name.startswith("discriminator.") for name in found) else (*FROZEN, "discriminator.")
    expected = {name: weight for name, weight in expected.items() if not name.startswith(left_out)}
    for name in sorted(expected.keys() | found.keys()):
        there, here = (tuple(w[name].shape) if name in w else "none" for w in (found, expected))
        if there != here:
            raise UserError(
                f"the checkpoint is of another model: {name} has shape {there} there and {here} in the model of "
                f"teacher {teacher}"
            )


def broken(checkpoint: Path) -> str | None:
    """Why a file is no whole checkpoint of a training: cut short, damaged anywhere, or something else."""
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            if (damaged := archive.testzip()) is not None:
                return f"{damaged} is damaged"
        content = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        missing = [key for key in ("state_dict", "pytorch-lightning_version") if key not in content]
        return f"it has no {missing[0]}" if missing else None
    except Exception as error:  # a damaged archive can end in any
        return first_line(error)
