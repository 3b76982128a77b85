"""The tasks of a sweep: what is trained and evaluated for each row and seed, and the words of its commands."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffgan.cli.sweeps.table_file import Row, Table, at_scale, record_name
from diffgan.cli.tables.records import read_content
from diffgan.errors import UserError

RUNS = Path("runs/tables")
EVALUATION_CACHE = "runs/evaluation"
START = "start"  # folder of the training that the rows of one seed begin with


@dataclass(frozen=True)
class Sweep:
    """A table at a scale, with the user's changes.

    table: what its file says.
    scale: one of `SCALES`.
    config: configurations of the pairs and of the runs, after those of the table and of the row.
    fit: configurations of the runs alone, after these.
    predict: configurations of the pairs alone.
    evaluate: options of `diffgan evaluate`, by name.
    """

    table: Table
    scale: str
    config: tuple[str, ...] = ()
    fit: tuple[str, ...] = ()
    predict: tuple[str, ...] = ()
    evaluate: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Folder of the runs and of `records`."""
        return RUNS / self.scale / self.table.name

    @property
    def records(self) -> Path:
        """Folder of the records."""
        return self.folder / "records"


@dataclass(frozen=True)
class Task:
    """One row with one seed.

    key: the row's.
    row: the row.
    seed: None if the row is a pipeline.
    record: the file that ends the task.
    """

    key: str
    row: Row
    seed: int | None
    record: Path

    @property
    def name(self) -> str:
        """E.g. "mse, seed 0"."""
        return self.key if self.seed is None else f"{self.key}, seed {self.seed}"


def tasks_of(sweep: Sweep, part: tuple[int, int] = (1, 1)) -> list[Task]:
    """The tasks of a part of the sweep: the k-th of every K tasks, or seeds where rows share a training.

    Pipelines that are compared with the images of one of them are one task here.

    Args:
        part: (k, K).
    """
    rows, table = sweep.table.rows_of(sweep.scale), sweep.table
    pipelines = [_task(sweep, key, row, None) for key, row in rows.items() if row.pipeline is not None]
    runs = {key: row for key, row in rows.items() if row.pipeline is None and not row.cited}
    by_seed = [[_task(sweep, key, row, seed) for key, row in runs.items()] for seed in table.seeds]
    pipelines.sort(key=lambda task: task.key != table.teacher)  # its images first
    groups = [pipelines] if table.teacher else [[task] for task in pipelines]
    groups += by_seed if table.start else [[task] for tasks in by_seed for task in tasks]
    k, count = part
    return [task for group in groups[k - 1 :: count] for task in group]


def _task(sweep: Sweep, key: str, row: Row, seed: int | None) -> Task:
    return Task(key, row, seed, sweep.records / record_name(key, seed))


# ---- words of commands ----


def start_folder(sweep: Sweep, seed: int) -> Path:
    """Run folder of the training that the rows of a seed begin with."""
    return sweep.folder / START / f"seed-{seed}"


def run_folder(sweep: Sweep, task: Task) -> Path:
    """Folder of a row's run."""
    return sweep.folder / task.key / f"seed-{task.seed}"


def start_words(sweep: Sweep, seed: int) -> list[str]:
    """Options of the `fit` that the rows of a seed begin with."""
    configs = [*sweep.table.configs, *sweep.table.start]
    return _run_words(sweep, configs, START, seed, f"start of {sweep.table.name}")


def run_words(sweep: Sweep, task: Task) -> list[str]:
    """Options of the commands of a row's run, without `--ckpt_path`."""
    return _run_words(sweep, [*sweep.table.configs, *task.row.configs], task.key, task.seed, task.row.title)


def _run_words(sweep: Sweep, configs: Sequence[str], name: str, seed: int, title: str) -> list[str]:
    files = [*(at_scale(config, sweep.scale) for config in configs), *sweep.config, *sweep.fit]
    options = {
        "seed_everything": seed,
        **({"data.init_args.seed": seed} if "fit" in sweep.table.commands else {}),
        "trainer.logger.init_args.save_dir": sweep.folder,
        "trainer.logger.init_args.name": name,
        "trainer.logger.init_args.version": f"seed-{seed}",
        "trainer.callbacks.report.init_args.name": title,
    }
    return _given(files) + [f"--{option}={value}" for option, value in options.items()]


def pairs_words(sweep: Sweep) -> list[str]:
    """Options of the `predict` that makes the pairs."""
    return _given([*(at_scale(file, sweep.scale) for file in sweep.table.pairs), *sweep.config, *sweep.predict])


def _given(files: Sequence[str]) -> list[str]:
    return [word for file in files for word in ("-c", file)]


def evaluation_words(sweep: Sweep, task: Task) -> list[str]:
    """The arguments of `evaluate` of a row that is a pipeline."""
    if sweep.scale not in sweep.table.protocol:
        raise UserError(f"table {sweep.table.name}: protocol: has no entry {sweep.scale}, which row {task.key} needs")
    options = {
        "name": task.row.title,
        "protocol": at_scale(sweep.table.protocol[sweep.scale], sweep.scale),
        "cache": EVALUATION_CACHE,
        **sweep.evaluate,
    }
    if sweep.scale in sweep.table.batch_size:
        options["batch_size"] = sweep.table.batch_size[sweep.scale]
    if sweep.table.teacher is not None:
        folder = sweep.folder / "images" / sweep.table.teacher
        options["save_images" if task.key == sweep.table.teacher else "teacher_images"] = folder
    words = [at_scale(task.row.pipeline, sweep.scale), str(task.record)]
    return words + [f"--{option}={value}" for option, value in options.items()]


# ---- records ----


def read_record(path: Path) -> dict[str, Any] | None:
    """The content of a record, or None if there is none; raises UserError for a file that is no record."""
    try:
        return read_content(path) if path.exists() else None
    except UserError as error:
        raise UserError(f"{error}; remove it to make it again") from error
