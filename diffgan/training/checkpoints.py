"""The content of training checkpoints: which weights, how optimizer states are stored, and checks before loading."""

import contextlib
import copy
import os
import shutil
import traceback
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgan.errors import UserError, first_line

FROZEN = ("teacher.", "regression.")  # prefixes of weights that checkpoints omit: rebuilt from the configuration
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"  # the newest checkpoint of a run, and the one before
GOOD = "good.ckpt"  # beside last.ckpt: the newest checkpoint from before a run went wrong
BEST = "best.ckpt"  # beside last.ckpt: that of the lowest value of a metric
PARTIAL = ".partial"  # suffix of files that are not complete

COPIED = ("state_dict", "optimizer_states")  # parts of a checkpoint that are copied to networks and optimizers

# What a checkpoint must hold, and the types of what it may hold.
REQUIRED = ("state_dict", "pytorch-lightning_version")
FIELDS = {
    **{"state_dict": dict, "pytorch-lightning_version": str, "epoch": int, "global_step": int, "loops": dict},
    **{"callbacks": dict, "optimizer_states": list, "lr_schedulers": list, "images_seen": int, "teacher_digest": str},
}
OPTIMIZER = {"state": dict, "param_groups": list}
KIND_NAMES = {dict: "a dictionary", list: "a list", str: "a text", int: "an integer of at least 0"}
SHOWN = 60  # characters of a wrong value in a message
CONNECTOR = "lightning.pytorch.trainer.connectors.checkpoint_connector"  # where Lightning restores a checkpoint

# ---- weights ----


def check_weights(expected: dict[str, Tensor], found: dict[str, Tensor], teacher: str) -> None:
    """Check that the weights of a checkpoint fit a model.

    A checkpoint without a discriminator is one of regression alone. It fits an adversarial training, whose
    discriminator then starts anew.

    Args:
        expected, found: name -> weight, of the model and of the checkpoint.
        teacher: path of the model's teacher, for the message.

    Raises:
        UserError: a weight is missing on either side or has another shape.
    """
    has_discriminator = any(name.startswith("discriminator.") for name in found)
    omitted = FROZEN if has_discriminator else (*FROZEN, "discriminator.")
    expected = {name: weight for name, weight in expected.items() if not name.startswith(omitted)}
    for name in sorted(expected.keys() | found.keys()):
        found_shape, expected_shape = _shape(found, name), _shape(expected, name)
        if found_shape != expected_shape:
            raise UserError(
                f"the checkpoint is of another model: {name} has shape {found_shape} there and {expected_shape} "
                f"in the model of teacher {teacher}"
            )


def _shape(weights: dict[str, Tensor], name: str) -> tuple[int, ...] | str:
    return tuple(weights[name].shape) if name in weights else "none"


def contiguous(state: Any) -> Any:
    """The same nested dictionaries and lists with contiguous tensors, as `checkpoint_io` writes them.

    Strategies that shard a loaded tensor read its values in contiguous order, whatever its memory format is.
    """
    if isinstance(state, Tensor):
        return state.contiguous()
    if isinstance(state, dict):
        return {key: contiguous(value) for key, value in state.items()}
    return [contiguous(value) for value in state] if isinstance(state, list) else state


# ---- optimizer states, keyed by the names of weights ----


def keyed_by_name(state: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """An optimizer's `state_dict` with names of weights in place of their numbers, which differ between strategies.

    Args:
        state: of one optimizer. Its keys are numbers, or names already; it is empty on processes that do not save.
        names: of the optimizer's weights, in the order of their numbers.
    """
    if "state" not in state:
        return state
    groups = []
    for group in state["param_groups"]:
        groups.append(group | {"params": [_name(key, names) for key in group["params"]]})
    return {"state": {_name(key, names): value for key, value in state["state"].items()}, "param_groups": groups}


def _name(key: int | str, names: list[str]) -> str:
    return names[key] if isinstance(key, int) else key


def lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """Give the tensors of an optimizer's state memory of their own in the layout of their weights.

    Fused kernels require that layout. What is on the CPU may be mapped from a checkpoint, see `with_own_memory`.
    """
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
            elif value.device.type == "cpu":
                state[name] = value.clone()


# ---- files ----


def read_mapped(path: str | Path, weights_only: bool | None) -> dict[str, Any]:
    """A checkpoint whose tensors are read from the file where they are used: processes share what is in memory of it.

    Raises:
        OSError, RuntimeError: the file cannot be read.
    """
    return torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)


def with_own_memory(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A mapped checkpoint with copies of all tensors but weights and optimizer states, which loading copies.

    A single tensor that is kept would keep the whole file, and its space on the disk after a later save replaced it.
    """
    return {key: value if key in COPIED else copy.deepcopy(value) for key, value in checkpoint.items()}


def keep_as(checkpoint: Path, kept: Path) -> None:
    """Give a checkpoint a second name, which stays when the first name is given to another file.

    The name is a hard link, so it takes no space of its own; where the file system has none, it is a copy.

    Raises:
        OSError: the system refuses.
    """
    link = kept.with_name(kept.name + PARTIAL)
    link.unlink(missing_ok=True)
    try:
        os.link(checkpoint, link)
    except OSError:
        shutil.copyfile(checkpoint, link)
    link.replace(kept)
    with contextlib.suppress(FileNotFoundError):
        link.unlink()  # a link that is renamed to another link of the same file stays


def replace_last(written: Path, keep_previous: bool) -> None:
    """Make a complete checkpoint file the run's `last.ckpt`; the one before becomes `previous.ckpt` or is dropped."""
    last = written.with_name(LAST)
    if keep_previous and last.exists():
        last.replace(last.with_name(PREVIOUS))
    written.replace(last)


def find_damage(checkpoint: Path) -> str | None:
    """Read a whole checkpoint file and verify its checksums; nothing in it is unpickled but tensors and plain values.

    Returns:
        None if the file is a complete checkpoint, else the reason why it is not: truncated, damaged, or no checkpoint.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            return f"{damaged} is damaged"
        return content_fault(read_mapped(checkpoint, weights_only=True))
    except Exception as error:  # damaged archives raise many kinds
        return first_line(error)


def content_fault(content: Any) -> str | None:
    """What is wrong with the content of a checkpoint, as far as it can be told without its model.

    A value is missing or of another type, or a tensor of an optimizer's state has another shape than its weight.
    """
    if not isinstance(content, dict):
        return "it holds no dictionary"
    if missing := [key for key in REQUIRED if key not in content]:
        return f"it has no {missing[0]}"
    for key, kind in FIELDS.items():
        value = content.get(key)
        if key in content and (not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0)):
            return f"its {key} is {repr(value)[:SHOWN]} and must be {KIND_NAMES[kind]}"
    weights = content["state_dict"]
    if others := [name for name, weight in weights.items() if not isinstance(weight, Tensor)]:
        return f"its state_dict holds no tensor {others[0]}"
    fit_loop = content.get("loops", {}).get("fit_loop", {"state_dict": {}})
    if not isinstance(fit_loop, dict) or not isinstance(fit_loop.get("state_dict"), dict):
        return "its loops have no fit_loop with a state_dict"
    faults = (_optimizer_fault(state, weights) for state in content.get("optimizer_states", []))
    return next(filter(None, faults), None)


def _optimizer_fault(state: Any, weights: dict[str, Tensor]) -> str | None:
    """What is wrong with the state of one optimizer; its keys are names of weights, or numbers in other files."""
    if state == {}:  # of a process that does not save
        return None
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in OPTIMIZER.items()):
        return "an optimizer's state lacks state or param_groups"
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in state["param_groups"]):
        return "an optimizer's param_groups lack params"
    for name, values in state["state"].items():
        if not isinstance(values, dict):
            return f"an optimizer's state of {name} is no dictionary"
        for key, value in values.items():
            shapes = () if name not in weights else ((), weights[name].shape)
            if isinstance(value, Tensor) and shapes and tuple(value.shape) not in shapes:
                return f"an optimizer's {key} of {name} has shape {tuple(value.shape)}, its weight {tuple(shapes[1])}"
    return None


def restore_error(error: BaseException) -> UserError | None:
    """The error of a checkpoint whose content Lightning cannot restore; None if `error` was raised elsewhere.

    A checkpoint holds the states of loops, callbacks and schedulers, each read by its own code, which raises whatever
    another content leads it to.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        restores = frame.f_code.co_name.startswith(("restore", "resume"))
        if restores and frame.f_globals.get("__name__") == CONNECTOR:
            problem = f"{type(error).__name__}: {first_line(error)}"
            path = frame.f_locals["self"].trainer.ckpt_path
            return UserError(f"{path}: the checkpoint does not fit this training ({problem}); choose another one")
    return None
