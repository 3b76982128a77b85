"""Plots of a run's curves, of today and of earlier versions."""

import pytest
from matplotlib.axes import Axes
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from diffgan.cli.plot import plot
from diffgan.errors import UserError


def write_curves(folder, names, steps):
    with SummaryWriter(str(folder)) as writer:
        for name in names:
            for step in steps:
                writer.add_scalar(name, 0.5 + step / 100, step)


def test_curves_of_before_and_of_today_are_one(tmp_path, capsys):
    """A run that began under the old names and was resumed under the new ones."""
    old = ("d/right_about_real", "d/right_about_fake", "g/regression")
    write_curves(tmp_path / "run", old, range(0, 40, 8))
    write_curves(tmp_path / "run", ("d/accuracy_real", "d/accuracy_fake", "g/regression"), range(32, 80, 8))
    plot(tmp_path / "run", tmp_path / "deep" / "health.png")
    assert "health.png: 3 curves" in capsys.readouterr().out
    assert Image.open(tmp_path / "deep" / "health.png").size == (1200, 320)


def test_one_metric_of_several_runs_has_a_line_a_row_and_the_range_of_its_seeds(tmp_path, capsys, monkeypatch):
    """The curves that are drawn, read from matplotlib's axes."""
    for row, seed, offset in (("mse", 0, 0), ("mse", 1, 2), ("huber", 0, 10)):
        with SummaryWriter(str(tmp_path / "table" / row / f"seed-{seed}")) as writer:
            for step in (8, 16, *((24,) if seed == 0 else ())):  # the second seed was stopped earlier
                writer.add_scalar("validation/mse", offset + step, step)
    drawn = {}
    plain = Axes.plot

    def observed(axes, x, y, **style):
        drawn[style["label"]] = list(zip(x, y, strict=True))
        return plain(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", observed)
    plot(tmp_path / "table", tmp_path / "deep" / "mse.png", "validation/mse")
    assert drawn == {"mse": [(8, 9), (16, 17)], "huber": [(8, 18), (16, 26), (24, 34)]}
    assert "mse.png: validation/mse of 3 runs" in capsys.readouterr().out
    assert Image.open(tmp_path / "deep" / "mse.png").size == (840, 480)
    with pytest.raises(UserError, match="table: no run in it has a curve validation/psnr"):
        plot(tmp_path / "table", tmp_path / "other.png", "validation/psnr")
    assert not (tmp_path / "other.png").exists()


def test_folder_without_curves_is_refused(tmp_path):
    write_curves(tmp_path / "run", ["other"], range(3))
    for folder in ("run", "nothing"):
        with pytest.raises(UserError, match=f"{folder}: holds no TensorBoard curves"):
            plot(tmp_path / folder, tmp_path / "health.png")
    assert not (tmp_path / "health.png").exists()
