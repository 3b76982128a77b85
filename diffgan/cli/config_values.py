"""Values of a parsed configuration that no class can use: NaN, wrong settings of optimizers and of the trainer."""

import importlib
import math
from collections.abc import Mapping
from inspect import isclass
from typing import Any

import torch
from torch import nn

from diffgan.cli.config_errors import entries
from diffgan.errors import UserError, first_line
from diffgan.noise import require_seeds
from diffgan.numbers import require

BATCHES_OF = {  # verb -> the trainer's limit of its batches; `predict` may only open a set
    "fit": "limit_train_batches",
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
}


def check_values(verb: str, config: Mapping[str, Any]) -> None:
    """Check the values of a verb's configuration before anything is built from them.

    Args:
        verb: fit, validate, test or predict.
        config: the parsed configuration, as nested dicts.

    Raises:
        UserError: the seed is out of range, there are no data, a number is NaN, an optimizer does not take its
            settings, or the trainer's leave nothing to do.
    """
    seed = config.get("seed_everything")
    if seed is not None and not isinstance(seed, bool):
        require_seeds("seed_everything", seed)
    for keys, value in entries(config):
        if isinstance(value, float) and math.isnan(value):
            raise UserError(f"{'.'.join(keys)}: {value} is no number")
        if isinstance(value, dict) and isinstance(value.get("class_path"), str):
            _check_optimizer(".".join(keys), value["class_path"], value.get("init_args") or {})
    if config.get("trainer") is None:
        raise UserError("trainer: null: omit the section for Lightning's defaults")
    if config.get("data") is None:
        raise UserError(f"data: {verb} requires data: a class_path with init_args, such as LatentPairs")
    _check_trainer(verb, config["trainer"])


def _check_optimizer(key: str, class_path: str, settings: Mapping[str, Any]) -> None:
    """Build an optimizer on one weight, if the class is one. Raises UserError if it refuses, or a number is infinite.

    key: where the configuration names it.
    """
    module, _, name = class_path.rpartition(".")
    kind = getattr(importlib.import_module(module), name, None) if module else None
    if not isclass(kind) or not issubclass(kind, torch.optim.Optimizer):
        return
    try:
        kind([nn.Parameter(torch.zeros(1))], **settings)
    except (ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{key}: {name}: {first_line(error)}") from error
    for setting, value in settings.items():
        if isinstance(value, float):
            require(f"{key}.{setting}", value)


def _check_trainer(verb: str, trainer: Mapping[str, Any]) -> None:
    limit = BATCHES_OF.get(verb)
    if trainer.get(limit) == 0:
        raise UserError(
            f"trainer.{limit}: {trainer[limit]} leaves {verb} nothing to do; leave it out, or give 1 or more"
        )
    if verb != "fit":
        return
    for name in ("max_epochs", "max_steps"):
        if trainer.get(name) == 0:
            raise UserError(f"trainer.{name}: 0 leaves fit nothing to do; give -1 (no limit) or 1 or more")
    for name, above in (("val_check_interval", 0), ("log_every_n_steps", -1), ("accumulate_grad_batches", 0)):
        value = trainer.get(name)
        if isinstance(value, int | float):
            require(f"trainer.{name}", value, above=above)
