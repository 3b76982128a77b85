"""Table files (configs/tables/NAME.yaml): the rows of a table, how each is made, and the paper's numbers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from diffgan.errors import UserError, first_line
from diffgan.packaged import find_config

SCALES = ("glyphs", "sd15", "sdxl")
COMMANDS = ("fit", "test")
SCALE = "{scale}"  # in a path: replaced by one of them
FOLDERS = ("start", "records", "images")  # beside the run folders of the rows, which have the rows' keys as names
ROOT = Path("configs/tables")
COMMITTED = ROOT / "results"  # records in the repository


@dataclass(frozen=True)
class Row:
    """One row of a table: a run (`configs`), a pipeline that is evaluated as it is, or numbers of the paper alone.

    title: what the table calls it.
    configs: of the row's run, after those of the table.
    pipeline: the file that says how a diffusers pipeline is called, see `diffgan evaluate`; without seeds.
    cited: whether the row shows the paper's values and nothing else.
    scales: those that have this row.
    paper: the paper's values, by the key of the metric.
    """

    title: str
    configs: tuple[str, ...] = ()
    pipeline: str | None = None
    cited: bool = False
    scales: tuple[str, ...] = SCALES
    paper: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Paper:
    """Where the rows' `paper` values come from.  scale: the teacher's.  source: e.g. "table 1"."""

    scale: str
    source: str


@dataclass(frozen=True)
class Table:
    """The content of a table file. Paths may contain {scale}.

    name: the file's, without suffix.
    title: heading.
    rows: by key, in the order of the table.
    configs: of every run, in this order, before those of the row.
    commands: of a run, in this order: fit and test, or test alone.
    seeds: of the runs.
    start: configurations, after `configs`, of a training whose checkpoint the rows of one seed begin with; () none.
    columns: keys of the metrics to show, without "evaluation/", by scale; without an entry all measured ones.
    protocol: name or file of the evaluation protocol of pipelines, by scale.
    batch_size: images of a pipeline at once, by scale; without an entry the default of `diffgan evaluate`.
    teacher: key of the row whose images the other pipelines are compared with, image by image.
    pairs: configurations of `diffgan predict` that make the pairs, in this order; () if no row needs any.
    paper: where the rows' `paper` values come from.
    """

    name: str
    title: str
    rows: Mapping[str, Row]
    configs: tuple[str, ...] = ()
    commands: tuple[str, ...] = COMMANDS
    seeds: tuple[int, ...] = (0,)
    start: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    protocol: Mapping[str, str] = field(default_factory=dict)
    batch_size: Mapping[str, int] = field(default_factory=dict)
    teacher: str | None = None
    pairs: tuple[str, ...] = ()
    paper: Paper | None = None

    def rows_of(self, scale: str) -> dict[str, Row]:
        """The rows that a scale has."""
        return {key: row for key, row in self.rows.items() if scale in row.scales}

    def committed(self, scale: str) -> Path:
        """The folder of the table's records in the repository."""
        return COMMITTED / scale / self.name


def row_records(folder: Path, key: str, table: Table) -> list[Path]:
    """The records of a row in a folder of records, in the order of the table's seeds."""
    row = table.rows[key]
    seeds = (None,) if row.pipeline is not None or row.cited else table.seeds
    files = [folder / record_name(key, seed) for seed in seeds]
    return [file for file in files if file.is_file()]


def record_name(key: str, seed: int | None = None) -> str:
    """The file name of a row's record; seed: None if the row is a pipeline."""
    return f"{key}.json" if seed is None else f"{key}-seed-{seed}.json"


def at_scale(path: str, scale: str) -> str:
    """A path of a table file at a scale."""
    return path.replace(SCALE, scale)


# ---- reading ----


def read_table(path: Path) -> Table:
    """A table file, or the package's; raises UserError naming the file and the field that is wrong."""
    try:
        content = yaml.safe_load(Path(find_config(path)).read_text())
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: is no table file ({first_line(error)})") from error
    content = _mapping(content, str(path), Table, without=("name",))
    _text(content["title"], f"{path}: title")
    rows = content["rows"]
    if not isinstance(rows, dict) or not rows:
        raise UserError(f"{path}: rows: must map at least one key to a row")
    content["rows"] = {
        _key(key, f"{path}: rows.{key}"): _row(value, f"{path}: rows.{key}") for key, value in rows.items()
    }
    if content.get("paper") is not None:
        content["paper"] = Paper(**_mapping(content["paper"], f"{path}: paper", Paper))
        _scales([content["paper"].scale], f"{path}: paper.scale")
    for name in ("configs", "start", "pairs"):
        content[name] = _texts(content.get(name), f"{path}: {name}")
    content["commands"] = _texts(content.get("commands", list(COMMANDS)), f"{path}: commands")
    if content["commands"] not in (COMMANDS, COMMANDS[1:]):
        raise UserError(f"{path}: commands: must be [fit, test] or [test]")
    teacher, pipelines = content.get("teacher"), [key for key, row in content["rows"].items() if row.pipeline]
    if teacher is not None and teacher not in pipelines:
        raise UserError(f"{path}: teacher: {teacher!r} must be the key of a row with a pipeline")
    content["seeds"] = _seeds(content.get("seeds", [0]), f"{path}: seeds")
    content["columns"] = {
        scale: _texts(keys, f"{path}: columns.{scale}")
        for scale, keys in _by_scale(content.get("columns"), f"{path}: columns").items()
    }
    for name, kind in (("protocol", str), ("batch_size", int)):
        content[name] = _by_scale(content.get(name), f"{path}: {name}")
        for scale, value in content[name].items():
            if type(value) is not kind or not value:
                raise UserError(f"{path}: {name}.{scale}: {value!r} must be {'a text' if kind is str else 'a number'}")
    return Table(name=path.stem, **content)


def _row(value: Any, place: str) -> Row:
    row = _mapping(value, place, Row)
    row["configs"] = _texts(row.get("configs"), f"{place}.configs")
    row["scales"] = _scales(row.get("scales", list(SCALES)), f"{place}.scales")
    _text(row["title"], f"{place}.title")
    if row.get("pipeline") is not None:
        _text(row["pipeline"], f"{place}.pipeline")
    if not isinstance(row.get("cited", False), bool):
        raise UserError(f"{place}.cited: must be true or false")
    paper = row.get("paper") or {}
    if not isinstance(paper, dict) or not all(type(number) in (int, float) for number in paper.values()):
        raise UserError(f"{place}.paper: must map metrics to numbers")
    row["paper"] = paper
    row = Row(**row)
    if (row.pipeline is not None) + bool(row.configs) + row.cited > 1:
        raise UserError(f"{place}: must have one of configs, pipeline and cited")
    return row


def _mapping(value: Any, place: str, kind: type, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A mapping with the fields of a dataclass; raises UserError for unknown and missing keys."""
    known = {each.name for each in fields(kind)} - set(without)
    if not isinstance(value, dict):
        raise UserError(f"{place}: must be a mapping with {', '.join(sorted(known))}")
    if unknown := sorted(set(map(str, value)) - known):
        raise UserError(f"{place}: {unknown[0]} is none of {', '.join(sorted(known))}")
    required = {"rows", "title"} & known if kind is not Paper else known
    if missing := sorted(required - set(value)):
        raise UserError(f"{place}: {missing[0]} is missing")
    return dict(value)


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value or "\n" in value:
        raise UserError(f"{place}: {value!r} must be a text of one line; put it in quotes")
    return value


def _key(value: Any, place: str) -> str:
    """A row's key, which names its files and folders."""
    key = str(value)
    if not re.fullmatch(r"\w[\w.-]*", key) or key in FOLDERS:
        raise UserError(
            f"{place}: no row can have this key; use letters, digits, _ and -, and none of {', '.join(FOLDERS)}"
        )
    return key


def _scales(value: Any, place: str) -> tuple[str, ...]:
    scales = _texts(value, place)
    if unknown := [scale for scale in scales if scale not in SCALES]:
        raise UserError(f"{place}: {unknown[0]} is none of {', '.join(SCALES)}")
    if not scales:
        raise UserError(f"{place}: is empty; name one of {', '.join(SCALES)}, or leave it out")
    return scales


def _texts(value: Any, place: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{place}: must be a list of texts")
    return tuple(value)


def _seeds(value: Any, place: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value or not all(type(seed) is int and seed >= 0 for seed in value):
        raise UserError(f"{place}: must be a list of whole numbers from 0 on")
    if len(set(value)) < len(value):
        raise UserError(f"{place}: a seed is listed twice")
    return tuple(value)


def _by_scale(value: Any, place: str) -> dict[str, Any]:
    value = {} if value is None else value
    if not isinstance(value, dict) or not set(value) <= set(SCALES):
        raise UserError(f"{place}: must map {', '.join(SCALES)} to values")
    return value
