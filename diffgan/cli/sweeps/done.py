"""Which rows of a sweep are done, and whether what is there was made with the sweep's configuration."""

from pathlib import Path
from typing import Any

from diffgan.cli.sweeps.configuration import (
    configuration,
    require_same_configuration,
    require_same_inputs,
    require_same_protocol,
    require_same_row,
    require_same_training,
)
from diffgan.cli.sweeps.inputs import input_digests, protocols_of
from diffgan.cli.sweeps.table_file import at_scale
from diffgan.cli.sweeps.tasks import (
    Sweep,
    Task,
    evaluation_words,
    read_record,
    run_folder,
    run_words,
)
from diffgan.evaluation.rows import read_row


def is_done(sweep: Sweep, task: Task) -> bool:
    """Whether the task's record is there.

    The configuration is read in any case, so that a mistake in it is found before any row is run.

    Raises:
        UserError: the record, or a training that has begun, was made with another configuration or other files.
    """
    record = read_record(task.record)
    if task.row.pipeline is not None:
        _check_pipeline(sweep, task, record)
    else:
        _check_run(sweep, task, record)
    return record is not None


def _check_pipeline(sweep: Sweep, task: Task, record: dict[str, Any] | None) -> None:
    evaluation_words(sweep, task)
    file, protocol = (at_scale(path, sweep.scale) for path in (task.row.pipeline, sweep.table.protocol[sweep.scale]))
    read_row(Path(file))
    if record is not None:
        require_same_row(record, task.record, file)
        require_same_protocol(record, task.record, protocol)
        if compared := record.get("teacher_images"):  # what made them, as a record says it
            teacher = sweep.table.rows[sweep.table.teacher or task.key]
            require_same_row(compared, task.record, at_scale(teacher.pipeline, sweep.scale))


def _check_run(sweep: Sweep, task: Task, record: dict[str, Any] | None) -> None:
    now = configuration("test", run_words(sweep, task))
    if record is None:
        require_same_training(run_folder(sweep, task), now)
        return
    require_same_configuration(record, task.record, now)
    require_same_inputs(record, task.record, input_digests(now))
    for protocol in protocols_of(now):
        require_same_protocol(record, task.record, protocol)
