"""The verb `plot`: the curves that show whether a run is healthy, or one curve of several runs, in one image."""

from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffgan.cli import renamed
from diffgan.errors import UserError
from diffgan.plots import Curve, Interval, draw, png, ranges_png
from diffgan.storage.atomic import write_atomic
from diffgan.storage.outputs import require_file_place

POINTS = 60  # of a curve: neighbouring values are averaged
COLUMNS = 3  # of panels
EVENT_FILES = "events.out.tfevents.*"
SEED = "seed-"  # a run's folder that is one seed of the folder it is in
# Title of a panel -> its curves.
PANELS = {
    "discriminator accuracy": ("d/accuracy_real", "d/accuracy_fake"),
    "discriminator accuracy, mismatched": (
        "d/accuracy_mismatched_text",
        "d/accuracy_mismatched_noise",
        "d/accuracy_mismatched_latent",
        "d/accuracy_mismatched",  # of version 0.2
    ),
    "discriminator loss (ln 4: it guesses)": ("d/loss",),
    "regression loss": ("g/regression", "validation/regression"),
    "gradient norm": ("g/gradient_norm", "d/gradient_norm"),
    "|gradient of D|^2": ("d/r1",),
    "diversity / the teacher's": ("health/diversity",),
}
LOGARITHMIC = ("gradient norm", "|gradient of D|^2")


def plot(run: Path, output: Path, metric: str | None = None) -> None:
    """Plot the health of a training run from its TensorBoard files, or one metric of several runs against images.

    Args:
        run: the run's folder; with a metric, a folder with runs in it or below.
        output: the PNG.
        metric: a curve, e.g. validation/mse; runs whose folders seed-0, seed-1, ... lie in one folder are one curve,
            their mean with the lowest and the highest value.
    """
    require_file_place(output, suffixes=(".png",))
    if metric is not None:
        _plot_metric(run, output, metric)
        return
    panels = panels_of(read_curves(run))
    if not panels:
        raise UserError(f"{run}: holds no TensorBoard curves of a distillation")
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(12, 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axes, (title, curves) in zip(grid, panels.items(), strict=False):
        draw(axes, curves, "images", title, logarithmic=title in LOGARITHMIC)
    for axes in grid[len(panels) :]:
        axes.remove()
    write_atomic(output, png(figure, dpi=100))
    print(f"{output}: {sum(map(len, panels.values()))} curves")


def _plot_metric(folder: Path, output: Path, metric: str) -> None:
    """Plot one curve of every run in a folder and below."""
    runs = sorted({file.parent for file in folder.rglob(EVENT_FILES)})
    groups: dict[str, list[dict[float, float]]] = {}
    for run in runs:
        curves = read_curves(run)
        if metric in curves:
            row = run.parent if run.name.startswith(SEED) else run
            groups.setdefault(row.name, []).append(dict(curves[metric]))
    if not groups:
        raise UserError(f"{folder}: no run in it has a curve {metric}")
    curves = {name: _ranges(name, seeds) for name, seeds in groups.items()}
    write_atomic(output, ranges_png(curves, "images", metric))
    print(f"{output}: {metric} of {sum(map(len, groups.values()))} runs")


def _ranges(name: str, seeds: list[dict[float, float]]) -> list[Interval]:
    """Mean and range over the seeds, where all of them have a value."""
    common = sorted(set.intersection(*(set(seed) for seed in seeds)))
    columns = [(images, [seed[images] for seed in seeds]) for images in common]
    return [Interval(name, images, fmean(values), min(values), max(values), "") for images, values in columns]


def panels_of(curves: dict[str, Curve]) -> dict[str, dict[str, Curve]]:
    """The smoothed curves of every panel that has any."""
    panels = {}
    for title, names in PANELS.items():
        shown = {name: smoothed(curves[name]) for name in names if name in curves}
        if shown:
            panels[title] = shown
    return panels


def read_curves(run: Path) -> dict[str, Curve]:
    """Curves by their names of today: points (images, value), where a repeated stretch of a run counts once."""
    if not run.is_dir():
        return {}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    values: dict[str, dict[int, float]] = {}
    for name in sorted(events.Tags()["scalars"], key=lambda name: name not in renamed.CURVES):  # old names first
        points = {event.step: event.value for event in events.Scalars(name)}
        values.setdefault(renamed.CURVES.get(name, name), {}).update(points)
    return {name: sorted(points.items()) for name, points in values.items()}


def smoothed(curve: Curve) -> Curve:
    """At most `POINTS` means of neighbouring points."""
    size = -(-len(curve) // POINTS)
    groups = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [_mean(group) for group in groups]


def _mean(points: Curve) -> tuple[float, float]:
    xs, ys = zip(*points, strict=True)
    return sum(xs) / len(points), sum(ys) / len(points)
