"""The verb `sweep`: train and evaluate the rows of a table, one after another."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from diffgan.cli.planning import print_lines
from diffgan.cli.sweeps.child import run_in_child
from diffgan.cli.sweeps.configuration import configuration
from diffgan.cli.sweeps.done import is_done
from diffgan.cli.sweeps.inputs import input_digests
from diffgan.cli.sweeps.plan import plan_lines
from diffgan.cli.sweeps.start import check_starts, note_start, noted_start, start_checkpoint
from diffgan.cli.sweeps.table_file import SCALES, read_table
from diffgan.cli.sweeps.tasks import (
    Sweep,
    Task,
    evaluation_words,
    pairs_words,
    read_record,
    run_folder,
    run_words,
    start_words,
    tasks_of,
)
from diffgan.cli.tables.markdown import markdown
from diffgan.cli.tables.swept import swept_grid
from diffgan.errors import UserError
from diffgan.evaluation.provenance import write_json
from diffgan.storage.atomic import write_atomic
from diffgan.training.checkpoints import LAST
from diffgan.training.devices import require_unused_device


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
        device = "cuda" if torch.cuda.device_count() else "cpu"
    require_unused_device("--device", device)  # the rows are run in forked processes
    asked = Sweep(read_table(file), scale, tuple(config), tuple(fit), tuple(predict), {"device": device})
    tasks = _selected(tasks_of(asked, _part(part)), row, asked)
    check_starts(asked, tasks)
    pending = [task for task in tasks if not is_done(asked, task)]
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
    """The tasks of the asked rows; raises UserError if there is none."""
    known = asked.table.rows_of(asked.scale)
    if not known:
        scales = [scale for scale in SCALES if asked.table.rows_of(scale)]
        raise UserError(f"--scale: table {asked.table.name} has no rows at {asked.scale}; it has {', '.join(scales)}")
    if unknown := [row for row in rows if row not in known]:
        raise UserError(f"--row: {unknown[0]} is none of {', '.join(known)}")
    return [task for task in tasks if not rows or task.key in rows]


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
    words = run_words(asked, task)
    more = {"inputs": input_digests(configuration("test", words))}  # before they are read
    if "fit" in asked.table.commands:
        seconds = _fit(asked, task, words)
        if seconds is None:
            return False
        more |= seconds | noted_start(asked, task)
    if not run_in_child(["test", *words]):
        return False
    write_json(_test_record(run_folder(asked, task) / "metrics.json") | more, task.record)
    return True


def _fit(asked: Sweep, task: Task, words: list[str]) -> dict[str, float] | None:
    """Train a row, from the common checkpoint of its seed if there is one; None if that failed.

    Returns:
        `training_seconds` without those of the common part; empty if the training resumed.
    """
    resumes, begin = _has_checkpoint(run_folder(asked, task)), []
    if asked.table.start and not resumes:
        if not run_in_child(["fit", *start_words(asked, task.seed)]):
            return None
        note_start(asked, task)
        begin = ["--ckpt_path", str(start_checkpoint(asked, task.seed))]
    started = time.monotonic()
    if not run_in_child(["fit", *words, *begin]):
        return None
    return {} if resumes else {"training_seconds": round(time.monotonic() - started, 1)}


def _has_checkpoint(folder: Path) -> bool:
    return (folder / "checkpoints" / LAST).is_file()


def _test_record(metrics: Path) -> dict[str, Any]:
    """The record that `diffgan test` has written; raises UserError if there is none."""
    record = read_record(metrics)
    if record is None or record.get("stage") != "test":
        raise UserError(f"{metrics}: is no record of `diffgan test`; a sweep's configuration must have RunReport")
    return record
