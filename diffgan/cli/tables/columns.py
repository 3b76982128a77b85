"""The columns of tables by the key of their metric."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from diffgan.cli.tables.records import Record
from diffgan.errors import UserError

if TYPE_CHECKING:
    from diffgan.evaluation.metrics.base import Column

UNKNOWN_DIGITS = 3  # of a metric that no protocol lists
TWO_AFC = ("traditional", "cnn", "blur", "colour", "noise", "compression", "autoencoder", "warp")  # families


def known_columns() -> "dict[str, Column]":
    """Every known column by its key, in the order in which tables show them."""
    from diffgan.evaluation.columns import metric_columns  # metrics import torch: not before the records are read
    from diffgan.evaluation.metrics.base import Column

    others = [
        Column("validation/mse", "held-out MSE", 4, better="lower"),
        Column("seconds_per_image", "seconds / image", 4),
        Column("network_calls", "network calls", 0),
        Column("images_seen", "images", 0),
        Column("test/2afc", "2AFC, %", 2, scale=100, better="higher"),
        *(Column(f"test/2afc_{name}", f"{name}, %", 2, scale=100, better="higher") for name in TWO_AFC),
    ]
    return {column.key: column for column in [*metric_columns(), *others]}


def measured_columns(records: Iterable[Record]) -> "list[Column]":
    """The known columns of what was measured, without those of the settings."""
    measured = set().union(*(record.values for record in records)) - {"network_calls", "images_seen"}
    return [column for column in known_columns().values() if column.key in measured]


def columns_of(keys: Iterable[str], records: Iterable[Record]) -> "list[Column]":
    """The columns of some metrics; one that no protocol lists has its key as heading.

    Raises:
        UserError: a metric is unknown, and none of the records has it.
    """
    from diffgan.cli.verbs import nearest
    from diffgan.evaluation.metrics.base import Column

    known, records, columns = known_columns(), list(records), []
    for key in keys:
        if key not in known and records and not any(key in record.values for record in records):
            similar = nearest(key, [*known, *records[0].values])
            raise UserError(f"no record has {key}" + (f"; did you mean {similar}?" if similar else ""))
        columns.append(known.get(key) or Column(key, key, UNKNOWN_DIGITS))
    return columns
