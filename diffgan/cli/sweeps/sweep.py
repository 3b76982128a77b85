"""The verb `sweep`: train and evaluate the rows of a table, one after another."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from diffgan.cli.planning import print_lines
from diffgan.cli.sweeps.child import run_in_child
from diffgan.cli.sweeps.configuration import configuration, require_same_configuration, require_same_row
from diffgan.cli.sweeps.plan import plan_lines
from diffgan.cli.sweeps.table_file import at_scale, read_table
from diffgan.cli.sweeps.tasks import (
    Sweep,
    Task,
    evaluation_words,
    pairs_words,
    read_record,
    run_folder,
    run_words,
    start_folder,
    start_words,
    tasks_of,
)
from diffgan.cli.tables.markdown import markdown
from diffgan.cli.tables.swept import swept_grid
from diffgan.errors import UserError
from diffgan.evaluation.provenance import write_json
from diffgan.evaluation.rows import read_row
from diffgan.storage.atomic import write_atomic
from diffgan.training.checkpoints import LAST
from diffgan.training.devices import require_device


def sweep(
    file: Path,
    scale: Literal["glyphs", "sd15", "sdxl"] = "glyphs",
    part: str = "1/1",
    device: str = "auto",
    plan: bool = False,
    *,
    config: list[str] = (),
    fit: list[str] = (),
    predict: list[str] = (),
    row: list[str] = (),
) -> None:
    """Train and evaluate the rows of a table with every seed; the same command resumes, and skips what is done.

    Args:
        file: the table file, e.g. configs/tables/regression-losses.yaml.
        scale: of the teacher.
        part: "k/K": the k-th of K parts, for K machines that share the folder `runs`.
        device: where pipelines are evaluated; auto: a GPU if there is one. A training's devices are its trainer's.
        plan: print what the sweep needs and what is done, and end.
        config: configuration of the pairs and of every run, after those of the table; may be repeated. Rows that are
            pipelines take none.
        fit: configuration of every run alone; may be repeated.
        predict: configuration of the pairs alone; may be repeated.
        row: only this row; may be repeated.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    require_device("--device", device)
    asked = Sweep(read_table(file), scale, tuple(config), tuple(fit), tuple(predict), {"device": device})
    tasks = _selected(tasks_of(asked, _part(part)), row, asked)
    pending = [task for task in tasks if not _is_done(asked, task)]
    if plan:
        print_lines(plan_lines(asked, tasks, pending))
        return
    _table_text(asked)  # a mistake in the table file is found before any run
    _make_pairs(asked, pending)
    failed = [task.name for task in pending if not _run(asked, task)]
    print(f"sweep: {len(tasks) - len(failed)} of {len(tasks)} rows are done: {asked.records}")
    if failed:
        raise UserError(f"sweep: failed: {'; '.join(failed)}; the same command tries them again")
    text = _table_text(asked)
    print(text, end="")
    write_atomic(asked.folder / "table.md", text.encode())


def _table_text(asked: Sweep) -> str:
    """The table of all records that are there; raises UserError if they cannot be compared."""
    return "\n".join(markdown(swept_grid(asked.table, asked.scale, asked.records))) + "\n"


def _part(text: str) -> tuple[int, int]:
    """ "2/3" -> (2, 3); raises UserError."""
    words = text.split("/")
    if len(words) == 2 and all(word.isdecimal() and len(word) < 6 for word in words):
        k, count = map(int, words)
        if 1 <= k <= count:
            return k, count
    raise UserError(f"--part: {text} is no part; give e.g. 2/3, the second of three")


def _selected(tasks: list[Task], rows: Sequence[str], asked: Sweep) -> list[Task]:
    known = asked.table.rows_of(asked.scale)
    if unknown := [row for row in rows if row not in known]:
        raise UserError(f"--row: {unknown[0]} is none of {', '.join(known)}")
    return [task for task in tasks if not rows or task.key in rows]


# ---- what is done ----


def _is_done(asked: Sweep, task: Task) -> bool:
    """Whether the task's record is there; raises UserError if it was made with another configuration.

    The configuration is read in any case, so that a mistake in it is found before any row is run.
    """
    record = read_record(task.record)
    if task.row.pipeline is not None:
        evaluation_words(asked, task)
        file, protocol = (
            at_scale(path, asked.scale) for path in (task.row.pipeline, asked.table.protocol[asked.scale])
        )
        read_row(Path(file))
        if record is not None:
            require_same_row(record, task.record, file, protocol)
        return record is not None
    now = configuration("test", run_words(asked, task))
    if record is not None:
        require_same_configuration(record, task.record, now)
    return record is not None


# ---- one task ----


def _make_pairs(asked: Sweep, pending: Sequence[Task]) -> None:
    """Make or complete the pairs, if a row needs any; raises UserError if that fails."""
    runs = [task for task in pending if task.row.pipeline is None]
    if runs and asked.table.pairs and not run_in_child(["predict", *pairs_words(asked)]):
        raise UserError("sweep: the pairs could not be made, see above")


def _run(asked: Sweep, task: Task) -> bool:
    """Do a row's commands; False if one failed, which has printed why."""
    print(f"sweep: {task.name}: {task.row.title}", file=sys.stderr)
    if task.row.pipeline is not None:
        return run_in_child(["evaluate", *evaluation_words(asked, task)])
    words, seconds = run_words(asked, task), {}
    if "fit" in asked.table.commands:
        resumes, started = _has_checkpoint(run_folder(asked, task)), time.monotonic()
        if not _fit(asked, task, words):
            return False
        seconds = {} if resumes else {"training_seconds": round(time.monotonic() - started, 1)}
    if not run_in_child(["test", *words]):
        return False
    write_json(_test_record(run_folder(asked, task) / "metrics.json") | seconds, task.record)
    return True


def _fit(asked: Sweep, task: Task, words: list[str]) -> bool:
    """Train a row, from the common checkpoint of its seed if there is one."""
    if not asked.table.start or _has_checkpoint(run_folder(asked, task)):
        return run_in_child(["fit", *words])
    begin = ["--ckpt_path", str(start_folder(asked, task.seed) / "checkpoints" / LAST)]
    return run_in_child(["fit", *start_words(asked, task.seed)]) and run_in_child(["fit", *words, *begin])


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / LAST).is_file()


def _test_record(metrics: Path) -> dict[str, Any]:
    """The record that `diffgan test` has written; raises UserError if there is none."""
    record = read_record(metrics)
    if record is None or record.get("stage") != "test":
        raise UserError(f"{metrics}: is no record of `diffgan test`; a sweep's configuration must have RunReport")
    return record
