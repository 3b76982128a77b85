"""Plots of a run's curves, of today and of earlier versions."""

import pytest
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


def test_folder_without_curves_is_refused(tmp_path):
    write_curves(tmp_path / "run", ["other"], range(3))
    for folder in ("run", "nothing"):
        with pytest.raises(UserError, match=f"{folder}: holds no TensorBoard curves"):
            plot(tmp_path / folder, tmp_path / "health.png")
    assert not (tmp_path / "health.png").exists()
