"""What an export says about itself, from its run: teacher, pairs, method, metrics and a grid of samples."""

import json
import shutil
from pathlib import Path
from typing import Any

from diffgan.errors import UserError
from diffgan.pairs.manifest import Manifest
from diffgan.storage.open import open_store
from diffgan.teachers.base import Teacher
from diffgan.teachers.registry import public_name

SAMPLES = "samples.png"  # in the export
EVALUATION = "evaluation/"  # prefix of metrics
PAIR_FIELDS = ("pairs", "steps", "guidance", "precision", "teacher_digest", "prompts_digest", "seed_base")


def describe(run: Path, config: dict[str, Any], teacher: Teacher, checkpoint: str) -> dict[str, Any]:
    """What the records of a run say; what it has no record of is omitted.

    Args:
        run: the run's folder.
        config: its configuration, as in `fit.yaml`.
        teacher: the teacher, with any weights.
        checkpoint: digest of the exported checkpoint, which metrics must be of.

    Returns:
        Plain JSON values without paths of this machine: a teacher that is a directory is named by its last part.
    """
    settings = config["model"]["init_args"]
    described = {
        "teacher": {"name": public_name(settings["teacher"]), "pipeline": teacher.pipeline_class.__name__},
        "method": _method(config["model"]),
        "pairs": _pairs(config.get("data")),
        "evaluation": _evaluation(run / "metrics.json", checkpoint),
    }
    return {name: value for name, value in described.items() if value}


def copy_samples(run: Path, images: int | None, folder: Path) -> None:
    """Copy the grid that the run drew with this checkpoint's weights into the export, if there is one."""
    grid = run / "samples" / f"images-{images or 0:08d}.png"
    if grid.is_file():
        shutil.copyfile(grid, folder / SAMPLES)


def _method(model: dict[str, Any]) -> dict[str, Any]:
    settings = model["init_args"]
    adversarial = settings.get("adversarial")
    method = {
        "name": _class_name(model),
        "images": settings.get("images"),
        "regression": _class_name(settings.get("regression")),
        "discriminator": _class_name((adversarial or {}).get("init_args", {}).get("discriminator")),
    }
    return {name: value for name, value in method.items() if value}


def _class_name(value: Any) -> str | None:
    """The bare class of a configuration's object."""
    path = value.get("class_path") if isinstance(value, dict) else None
    return path.rpartition(".")[2] if isinstance(path, str) else None


def _pairs(data: Any) -> dict[str, Any]:
    """What the manifest of the pair set says, if it is still there."""
    folder = data.get("init_args", {}).get("folder") if isinstance(data, dict) else None
    if not isinstance(folder, str) or not Path(folder).is_dir():
        return {}
    try:
        manifest = Manifest.read(open_store(folder))
    except UserError:  # replaced or of another version meanwhile: the export does not depend on it
        return {}
    return {name: getattr(manifest, name) for name in PAIR_FIELDS}


def _evaluation(file: Path, checkpoint: str) -> dict[str, Any]:
    """The run's last test, if it was of this checkpoint and under a protocol."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record["checkpoint"]["digest"] != checkpoint or not record.get("protocol"):
            return {}
        metrics = {name: value for name, value in record["metrics"].items() if name.startswith(EVALUATION)}
        return {name: record[name] for name in ("protocol", "protocol_digest", "images_seen")} | {"metrics": metrics}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
