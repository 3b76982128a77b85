"""The training that all rows of one seed begin with: one checkpoint, which their records name."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffgan.cli.config_difference import first_difference
from diffgan.cli.sweeps.configuration import MAY_CHANGE, REMEDY, configuration, require_same_training
from diffgan.cli.sweeps.tasks import Sweep, Task, read_record, run_folder, start_folder, start_words, tasks_of
from diffgan.errors import UserError, first_line
from diffgan.evaluation.provenance import write_json
from diffgan.storage.digests import digest
from diffgan.storage.json_files import read_object
from diffgan.training.checkpoints import LAST

BEGAN = "start.json"  # in a row's run folder: what its training began with
PARTS = ("model", "data")  # of the configuration


def start_checkpoint(sweep: Sweep, seed: int) -> Path:
    """The checkpoint that the rows of a seed begin with."""
    return start_folder(sweep, seed) / "checkpoints" / LAST


def check_starts(sweep: Sweep, tasks: Sequence[Task]) -> None:
    """Check that what is there began as the sweep would begin it now.

    Raises:
        UserError: the start of a seed, or the record of a row, is of another configuration.
    """
    if not sweep.table.start:
        return
    for seed in dict.fromkeys(task.seed for task in tasks if task.row.pipeline is None):
        now = configuration("fit", start_words(sweep, seed))
        require_same_training(start_folder(sweep, seed), now)
        for path, start in _recorded_starts(sweep, seed):
            if (changed := first_difference(start.get("config") or {}, now, PARTS, MAY_CHANGE)) is not None:
                raise UserError(f"{path}: its training began with another one: {changed}; {REMEDY}")


def note_start(sweep: Sweep, task: Task) -> None:
    """Write into a row's run folder what its training begins with: configuration and digest of the checkpoint.

    Raises:
        UserError: rows of the same seed that are done began with another checkpoint.
    """
    checkpoint = start_checkpoint(sweep, task.seed)
    config = configuration("fit", start_words(sweep, task.seed))
    start = {"digest": digest(checkpoint), "config": {part: config[part] for part in PARTS}}
    for path, other in _recorded_starts(sweep, task.seed):
        if other.get("digest") != start["digest"]:
            raise UserError(
                f"{path}: its training began with another checkpoint (digest {other.get('digest')}) than "
                f"{checkpoint} (digest {start['digest']}); remove the records of seed {task.seed}"
            )
    write_json(start, run_folder(sweep, task) / BEGAN)


def noted_start(sweep: Sweep, task: Task) -> dict[str, Any]:
    """What a row's record says of its start; empty if nothing was noted."""
    file = run_folder(sweep, task) / BEGAN
    try:
        return {"start": read_object(file)} if file.exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({first_line(error)}); remove {file.parent}") from error


def _recorded_starts(sweep: Sweep, seed: int) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Of the records of a seed: the file, and its start."""
    for task in tasks_of(sweep):
        record = read_record(task.record) if task.seed == seed else None
        if record is not None and isinstance(record.get("start"), dict):
            yield task.record, record["start"]
