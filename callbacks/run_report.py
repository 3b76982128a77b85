"""The record of a run: metrics, weights, configuration, versions, device and time."""

import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from callbacks.evaluation import Evaluation
from callbacks.run_folder import run_folder
from diffgan.evaluation.provenance import environment, write_json
from diffgan.storage.digests import digest


class RunReport(pl.Callback):
    """Write `metrics.json` in the run's folder at the end of a validation and of a test.

    It holds the metrics (in a fit those of the newest batch too), images seen, checkpoint and its digest,
    configuration, seed, versions, seconds and device.

    Args:
        name: what the tables call this run; by default the logger's name.
    """

    def __init__(self, name: str | None = None):
        self.name, self.path = name, Path()
        self._started = time.monotonic()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.path = run_folder(trainer) / "metrics.json"
        self._started = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            self.write(trainer, pl_module)

    on_test_end = on_validation_end

    def write(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the record now, atomically."""
        newest = getattr(pl_module, "observed", {}) if trainer.state.fn == "fit" else {}
        protocol = _protocol(trainer)
        metrics = {**newest, **_current(trainer.callback_metrics, evaluated=bool(protocol))}
        report = {
            "stage": trainer.state.fn.value,
            "name": self.name or getattr(trainer.logger, "name", None) or "student",
            "metrics": {name: float(value) for name, value in sorted(metrics.items()) if name != "step"},
            "images_seen": getattr(pl_module, "images_seen", None),
            "checkpoint": _checkpoint(trainer),
            "seconds": round(time.monotonic() - self._started, 1),
            **protocol,
            **environment(),
            "config": _configuration(trainer),
        }
        write_json(report, self.path)


def _protocol(trainer: pl.Trainer) -> dict[str, Any]:
    """Protocol, its digest, and what made the teacher's images, of the metrics; empty if nothing was evaluated now."""
    evaluations = [callback.metrics for callback in trainer.callbacks if isinstance(callback, Evaluation)]
    metrics = next(filter(None, evaluations), {})
    return {name: metrics[name] for name in ("protocol", "protocol_digest", "teacher_images") if name in metrics}


def _current(metrics: dict[str, Any], evaluated: bool) -> dict[str, Any]:
    """The trainer's metrics without those of an evaluation at an earlier validation, which it keeps."""
    return {name: value for name, value in metrics.items() if evaluated or not name.startswith("evaluation/")}


def _checkpoint(trainer: pl.Trainer) -> dict[str, str] | None:
    if trainer.state.fn == "fit":  # the weights in memory are in no file yet
        return None
    path = Path(trainer.ckpt_path) if trainer.ckpt_path else None
    return {"name": path.name, "digest": digest(path)} if path and path.is_file() else None


def _configuration(trainer: pl.Trainer) -> dict[str, Any] | None:
    for callback in trainer.callbacks:
        if isinstance(callback, SaveConfigCallback):
            return yaml.safe_load(callback.parser.dump(callback.config, skip_none=True))
    return None
