"""The verb `watch`: the curves of a run that tell whether it is healthy, in one picture."""

from pathlib import Path

from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffgan.errors import UserError
from diffgan.plots import Curve, draw

POINTS = 60  # of a curve: neighbouring values are averaged
PANELS = {
    "share of right signs": ("d/right_about_real", "d/right_about_fake", "d/right_about_mismatched"),
    "discriminator's loss (ln 4: it guesses)": ("d/loss",),
    "regression loss": ("g/regression", "validation/regression"),
    "gradient norm": ("g/gradient_norm", "d/gradient_norm"),
    "gradient penalty": ("d/r1",),
    "of the teacher's diversity": ("health/diversity",),
}


def plot(run: Path, output: Path) -> None:
    """Draw the health of a training run from its TensorBoard files.

    Args:
        run: the run's folder.
        output: the PNG.
    """
    curves = _read(run)
    panels = {title: [name for name in names if name in curves] for title, names in PANELS.items()}
    panels = {title: names for title, names in panels.items() if names}
    if not panels:
        raise UserError(f"{run}: holds no TensorBoard curves of a distillation")
    figure = Figure(figsize=(12, 3.2 * -(-len(panels) // 3)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // 3), 3, squeeze=False).flatten()
    for axes, (title, names) in zip(grid, panels.items(), strict=False):
        shown = {name: smoothed(curves[name]) for name in names}
        draw(axes, shown, "images", title, logarithmic=title in ("gradient norm", "gradient penalty"))
    for axes in grid[len(panels) :]:
        axes.remove()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=100)
    print(f"{output}: {sum(map(len, panels.values()))} curves")


def _read(run: Path) -> dict[str, Curve]:
    """Curves by name: (images, value), a stretch that was done again counted once."""
    if not run.is_dir():
        return {}
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    names = events.Tags()["scalars"]
    return {name: sorted({event.step: event.value for event in events.Scalars(name)}.items()) for name in names}


def smoothed(curve: Curve) -> Curve:
    """At most `POINTS` means of neighbouring points."""
    size = -(-len(curve) // POINTS)
    groups = (curve[i : i + size] for i in range(0, len(curve), size))
    return [tuple(sum(values) / len(group) for values in zip(*group, strict=True)) for group in groups]
