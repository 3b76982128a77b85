"""The configuration that a command of a sweep amounts to, and whether a record was made with it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from diffgan.cli.lightning_cli import DiffganCLI
from diffgan.cli.renamed import translate_config
from diffgan.cli.resuming import first_difference
from diffgan.errors import UserError
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.rows import read_row
from diffgan.evaluation.samplers import pipeline_digest

# What makes a result what it is: not the devices it was computed on.
COMPARED = ("seed_everything", "model", "data", "trainer.callbacks.evaluation", "trainer.callbacks.ema")
MAY_CHANGE = ("workers", "cache_gb", "cache")  # of these keys
OF_THE_MACHINE = ("dtype", "devices")  # of a pipeline's record


class _ConfigOnly(DiffganCLI):
    """Parses what `fit` or `test` would run; nothing is built, and the seeds of this process stay."""

    def _set_seed(self) -> None:
        pass

    def before_instantiate_classes(self) -> None:
        pass

    instantiate_classes = _set_seed

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def configuration(verb: str, words: Sequence[str]) -> dict[str, Any]:
    """The configuration of `diffgan VERB WORDS`, as the record of a run holds it.

    Raises:
        UserError: a file or an option is wrong.
    """
    try:
        cli = _ConfigOnly([verb, *words], auto_configure_optimizers=False, save_config_callback=None)
    except SystemExit as error:  # the parser has printed why
        raise UserError(f"sweep: `diffgan {verb} {' '.join(words)}` is not possible, see above") from error
    return yaml.safe_load(cli._parser(verb).dump(cli.config[verb], skip_none=True))


def require_same_configuration(record: dict[str, Any], path: Path, config: dict[str, Any]) -> None:
    """Raises UserError if a record was made with another configuration than `config`."""
    before = translate_config(record.get("config") or {})
    if (changed := first_difference(before, config, COMPARED, MAY_CHANGE)) is not None:
        raise UserError(
            f"{path}: {changed}: the sweep's configuration changed; remove the record and the row's run folder to "
            "make it again, or give the table another name"
        )


def require_same_row(record: dict[str, Any], path: Path, file: str, protocol: str) -> None:
    """Raises UserError if a pipeline's record was made with another row file, protocol or, of a folder, other weights.

    Args:
        record, path: the record and its file.
        file: the row file.
        protocol: name or file of the protocol.
    """
    row, config, pipeline = read_row(Path(file)), record.get("config") or {}, record.get("pipeline") or {}
    made = {key: value for key, value in config.items() if key not in OF_THE_MACHINE}
    remedy = "remove the record to make it again"
    if pipeline.get("name") != row.pipeline or made != row.settings():
        raise UserError(f"{path}: was made with another content of {file}; {remedy}")
    name = read_protocol(Path(protocol)).name if protocol.endswith((".yaml", ".yml")) else protocol
    if record.get("protocol") != name:
        raise UserError(f"{path}: is of protocol {record.get('protocol')}, the table's is {name}; {remedy}")
    now, before = pipeline_digest(row.pipeline), pipeline.get("digest")
    if None not in (now, before) and now != before:
        raise UserError(f"{path}: was made with other weights than {row.pipeline} holds now; {remedy}")
