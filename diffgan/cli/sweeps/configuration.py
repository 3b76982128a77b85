"""The configuration that a command of a sweep amounts to, and whether a record was made with it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from diffgan.cli.config_difference import difference_from_run, first_difference
from diffgan.cli.evaluate_options import DTYPE
from diffgan.cli.lightning_cli import DiffganCLI
from diffgan.cli.renamed import translate_config
from diffgan.cli.sweeps.inputs import protocol_digest
from diffgan.errors import UserError
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.rows import Row, read_row
from diffgan.evaluation.samplers import pipeline_digest
from diffgan.storage.digests import digest

# What makes a result what it is: not the devices it was computed on.
COMPARED = (
    *("seed_everything", "model", "data", "trainer.callbacks.evaluation", "trainer.callbacks.ema"),
    *("trainer.precision", "float32_matmul_precision"),
)
MAY_CHANGE = ("workers", "cache_gb", "cache")  # of these keys
OF_THE_MACHINE = ("dtype", "devices")  # of a pipeline's record
REMEDY = "remove the record and the row's run folder to make it again, or give the table another name"
REMOVE = "remove the record to make it again"


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
        raise UserError(f"{path}: {changed}: the sweep's configuration changed; {REMEDY}")


def require_same_training(folder: Path, config: dict[str, Any]) -> None:
    """Raises UserError if a run's folder holds a training, finished or not, with another configuration than `config`.

    `fit` would resume it, since a training may be made longer. In a sweep its result would be neither of the two.
    """
    record = folder / "fit.yaml"
    if (changed := difference_from_run(record, config, COMPARED, MAY_CHANGE)) is not None:
        raise UserError(
            f"{record}: {changed}: the sweep's configuration changed after this training began; remove {folder} to "
            "begin it again, or give the table another name"
        )


def require_same_inputs(record: dict[str, Any], path: Path, digests: Mapping[str, str]) -> None:
    """Raises UserError if a record was made with other files than there are now.

    Args:
        record, path: the record and its file; of earlier versions without digests.
        digests: see `input_digests`.
    """
    for name, was in (record.get("inputs") or {}).items():
        if (now := digests.get(name, was)) != was:
            raise UserError(f"{path}: was made with other files: {name}: digest {was} there, {now} now; {REMEDY}")


def require_same_protocol(record: dict[str, Any], path: Path, protocol: str) -> None:
    """Raises UserError if a record is of another protocol, or of the same name with another content.

    Args:
        record, path: the record and its file.
        protocol: name or file of the table's protocol.
    """
    name = read_protocol(Path(protocol)).name if protocol.endswith((".yaml", ".yml")) else protocol
    if record.get("protocol") != name:
        raise UserError(f"{path}: is of protocol {record.get('protocol')}, the table's is {name}; {REMOVE}")
    was, now = record.get("protocol_digest"), protocol_digest(protocol)
    if None not in (was, now) and was != now:
        raise UserError(f"{path}: is of another content of protocol {name} (digest {was} there, {now} now); {REMOVE}")


def require_same_row(record: dict[str, Any], path: Path, file: str) -> None:
    """Raises UserError if a pipeline's record was made with another row file or, of a folder, other weights.

    Args:
        record, path: the record and its file.
        file: the row file.
    """
    row, config, pipeline = read_row(Path(file)), record.get("config") or {}, record.get("pipeline") or {}
    made = {key: value for key, value in config.items() if key not in OF_THE_MACHINE}
    if pipeline.get("name") != row.pipeline or made != row.settings():
        raise UserError(f"{path}: was made with another content of {file}; {REMOVE}")
    if row.dtype is not None and config.get("dtype", DTYPE) != row.dtype:
        raise UserError(f"{path}: was made in {config.get('dtype', DTYPE)}, {file} says {row.dtype}; {REMOVE}")
    for place, was, now in _weights(row, pipeline):
        if None not in (was, now) and was != now:
            raise UserError(f"{path}: was made with other weights than {place} holds now; {REMOVE}")


def _weights(row: Row, pipeline: dict[str, Any]) -> Iterator[tuple[str, str | None, str | None]]:
    """The places of a row's weights, and their digests in a record and now; None where there is none."""
    yield row.pipeline, pipeline.get("digest"), pipeline_digest(row.pipeline)
    for name, place in (("unet", row.unet), ("lora", row.lora and row.lora.file)):
        if place is not None and Path(place).exists():
            yield place, (pipeline.get(name) or {}).get("digest"), digest(Path(place))
