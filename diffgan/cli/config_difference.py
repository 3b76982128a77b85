"""What two configurations of the same run do not share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffgan.cli.renamed import translate_config

# Arguments that older records lack, with what those runs did. Any other that a record lacks was null.
ADDED = {
    "fit_only": False,
    "on_cpu": False,
    "r1": "exact",
    "float32_output": False,
    "generator_rate": 1.0,
    "input_noise": 0.0,
    "interleave": 1,
    "resident": False,
    "cuda_graph": False,
    "float32_matmul_precision": "highest",
}


def first_difference(
    before: dict[str, Any], now: dict[str, Any], parts: Sequence[str], may_change: Sequence[str]
) -> str | None:
    """The first value that two configurations do not share, e.g. "data.seed was 0 and is 1 now"; None if there is none.

    A key that one of them lacks is null there, except those that older records lack (`ADDED`).

    Args:
        before: as a record holds it, perhaps of an earlier version.
        now: of the command.
        parts: keys whose values are compared, e.g. "trainer.callbacks.ema".
        may_change: last parts of keys that are not.
    """
    for part in parts:
        if (found := _difference(part, _at(before, part), _at(now, part), may_change)) is not None:
            return found
    return None


def difference_from_run(
    record: Path, now: dict[str, Any], parts: Sequence[str], may_change: Sequence[str]
) -> str | None:
    """As `first_difference`, from the configuration that a run has written; None if there is no such file.

    record: `fit.yaml` of the run.
    """
    if not record.is_file():
        return None
    return first_difference(translate_config(yaml.safe_load(record.read_text())), now, parts, may_change)


def _at(config: Any, key: str) -> Any:
    """The value of a key such as "trainer.callbacks.ema", or what it is in records without it."""
    for word in key.split("."):
        config = config.get(word, ADDED.get(word)) if isinstance(config, dict) else None
    return config


def _difference(key: str, was: Any, now: Any, may_change: Sequence[str]) -> str | None:
    was, now = _or_none(was), _or_none(now)
    if was == now or key.rpartition(".")[2] in may_change:
        return None
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return f"{key} was {_shown(was)} and is {_shown(now)} now"
    for word in dict.fromkeys([*now, *was]):
        if (found := _difference(f"{key}.{word}", _at(was, word), _at(now, word), may_change)) is not None:
            return found
    return None


def _or_none(value: Any) -> Any:
    """A value; an empty mapping (of a class without arguments) says no more than null."""
    return None if value == {} else value


def _shown(value: Any) -> str:
    """A value in a message; of a class with its arguments the name."""
    if isinstance(value, dict) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    return repr(value)
