"""What a sweep needs: trainings, images, files that are missing, and the time that earlier records took."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from diffgan.cli.sweeps.configuration import configuration
from diffgan.cli.sweeps.inputs import protocols_of, weight_files
from diffgan.cli.sweeps.table_file import at_scale, row_records
from diffgan.cli.sweeps.tasks import Sweep, Task, pairs_words, read_record, run_words, start_words
from diffgan.errors import UserError
from diffgan.evaluation.missing_weights import missing_weights
from diffgan.evaluation.protocols.coco import read_protocol
from diffgan.evaluation.rows import Row, read_row
from diffgan.storage.embedded import EMBEDDED

LOCAL = ("runs/", "models/", "/", "./", "../")  # beginnings of paths that are no names on the hub


def plan_lines(sweep: Sweep, tasks: Sequence[Task], pending: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Label and text of every line."""
    table = sweep.table
    yield "table", f"{table.name} at scale {sweep.scale}: {table.title}"
    trained = [task for task in tasks if task.row.pipeline is None]
    alone = [task for task in tasks if task.row.pipeline is not None]
    rows = len({task.key for task in trained})
    yield "rows", f"{rows} with a run for each of {len(table.seeds)} seeds, {len(alone)} pipelines as they are"
    yield "done", f"{len(tasks) - len(pending)} of {len(tasks)}: {sweep.records}"
    configs = {task.key: configuration(table.commands[0], run_words(sweep, task)) for task in trained}
    for key, config in configs.items():
        yield key, _training(config)
    yield from _start(sweep, trained)
    for task in alone:
        yield task.key, f"evaluates {at_scale(task.row.pipeline, sweep.scale)}"
    if hub := list(dict.fromkeys(_on_the_hub(sweep, list(configs.values()), alone))):
        yield from _labelled("hub", hub)
    missing = _missing(sweep, list(configs.values()), alone)
    yield from _labelled("missing", missing or ["nothing"])
    yield from _time(sweep, pending)


def _training(config: dict[str, Any]) -> str:
    """Images of a training, and those of them with a discriminator; of another run its class."""
    arguments = config["model"]["init_args"]
    if "regression" not in arguments:
        return config["model"]["class_path"].rpartition(".")[2]
    images, adversarial = arguments.get("images", 0), arguments.get("adversarial")
    starts = adversarial["init_args"]["starts_at_images"] if adversarial else images
    regression = arguments["regression"]
    loss = regression.get("init_args", {}).get("distance", regression)["class_path"].rpartition(".")[2]
    return f"{images:,} images, {images - starts:,} of them adversarial; {loss}"


def _start(sweep: Sweep, trained: Sequence[Task]) -> Iterator[tuple[str, str]]:
    if sweep.table.start and trained:
        config = configuration("fit", start_words(sweep, trained[0].seed))
        yield "start", f"{_training(config)}; once a seed, the rows begin with its checkpoint"


def _missing(sweep: Sweep, configs: Sequence[dict[str, Any]], alone: Sequence[Task]) -> list[str]:
    """Files and folders that are not there, with what makes them."""
    missing: dict[str, None] = {}
    for config in configs:
        folder = config["data"]["init_args"].get("folder", "")
        if folder and "://" not in folder:
            if sweep.table.pairs and not (Path(folder) / "manifest.json").is_file():
                missing[f"{folder}: made by diffgan predict {' '.join(pairs_words(sweep))}"] = None
            elif not Path(folder).is_dir():
                missing[f"{folder}: the data of a run"] = None
        for file in weight_files(config["model"]):
            if not file.is_file():
                missing[f"{file}: weights of the perceptual distance"] = None
        missing |= dict.fromkeys(_missing_of_protocols(protocols_of(config)))
    missing |= dict.fromkeys(_missing_of_rows(sweep, alone))
    if alone:
        missing |= dict.fromkeys(_missing_of_protocols([at_scale(sweep.table.protocol[sweep.scale], sweep.scale)]))
    return list(missing)


def _on_the_hub(sweep: Sweep, configs: Sequence[dict[str, Any]], alone: Sequence[Task]) -> Iterator[str]:
    """Names of teachers, pipelines and their weights that are no path here: they are opened from the hub."""
    names = [config["model"]["init_args"].get("teacher") for config in configs]
    for task in alone:
        names += _named(read_row(Path(at_scale(task.row.pipeline, sweep.scale))))
    for name in names:
        if name and name != EMBEDDED and not name.startswith(LOCAL) and not Path(name).exists():
            yield name


def _named(row: Row) -> list[str | None]:
    """The pipeline and the files that a row names."""
    return [row.pipeline, row.unet, row.lora and row.lora.file]


def _missing_of_rows(sweep: Sweep, alone: Sequence[Task]) -> Iterator[str]:
    """The pipelines and files of rows that are below the current folder and not there; the others may be on the hub."""
    for file in (at_scale(task.row.pipeline, sweep.scale) for task in alone):
        for name in _named(read_row(Path(file))):
            if name and name.startswith(LOCAL) and not Path(name).exists():
                yield f"{name}: which {file} names"


def _missing_of_protocols(protocols: Sequence[str]) -> Iterator[str]:
    for file in (file for file in protocols if file.endswith((".yaml", ".yml"))):
        try:
            protocol = read_protocol(Path(file))
            yield from missing_weights(protocol)
            protocol.digest  # noqa: B018 (reads captions and reference)
        except UserError as error:
            yield str(error)


def _time(sweep: Sweep, pending: Sequence[Task]) -> Iterator[tuple[str, str]]:
    """Seconds that the committed records of the pending rows took, where there are any."""
    seconds = {task.name: _recorded(sweep, task) for task in pending}
    known = [value for value in seconds.values() if value is not None]
    if known:
        yield (
            "time",
            f"{sum(known) / 3600:.1f} hours for {len(known)} of {len(pending)} rows, by the records in the repository",
        )


def _recorded(sweep: Sweep, task: Task) -> float | None:
    for file in row_records(sweep.table.committed(sweep.scale), task.key, sweep.table):
        record = read_record(file)
        return (record.get("training_seconds") or 0) + (record.get("seconds") or 0)
    return None


def _labelled(label: str, texts: Sequence[str]) -> Iterator[tuple[str, str]]:
    for i, text in enumerate(texts):
        yield ("" if i else label), text
