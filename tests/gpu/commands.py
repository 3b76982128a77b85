"""Commands of diffgan in this process, with small differences from the configurations of the miniature on a GPU."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from diffgan.__main__ import main
from tests.gpu.parts import ROOT, Setting

GLYPHS = ROOT / "configs/glyphs"


class CommandFailed(Exception):
    """A command ended with another exit code than expected."""


def one_device(setting: Setting) -> dict[str, Any]:
    """The trainer's settings that choose the device of the check."""
    return {"accelerator": "gpu" if setting.device.type == "cuda" else "cpu", "devices": 1}


def stage_configs(stage: str, difference: dict[str, Any], folder: Path) -> list[str]:
    """The words that name a stage's configuration on a GPU, and a difference from it, which is written to a folder."""
    file = folder / f"{stage}.yaml"
    file.write_text(yaml.safe_dump(difference))
    return ["-c", str(GLYPHS / f"{stage}.yaml"), "-c", str(GLYPHS / "gpu" / f"{stage}.yaml"), "-c", str(file)]


def run_command(words: list[str], exit_code: int = 0) -> None:
    """Run `diffgan words ...` from the repository's folder; its output is kept for the error.

    Raises:
        CommandFailed: the exit code is another one.
    """
    output, code = io.StringIO(), 0
    with (
        contextlib.chdir(ROOT),
        _same_torch_settings(),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        try:
            main(words)
        except SystemExit as stop:
            code = stop.code or 0
    if code != exit_code:
        lines = output.getvalue().strip().splitlines() or ["no output"]
        raise CommandFailed(f"{words[0]}: exit code {code}: {lines[-1]}")


@contextlib.contextmanager
def _same_torch_settings() -> Iterator[None]:
    """Context: PyTorch's settings that a configuration changes are restored, so that other parts do not see them."""
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.set_float32_matmul_precision(precision)
