"""Checks of a distillation's trainer and data before it starts; each raises UserError."""

import sys
from collections.abc import Iterable, Sequence

import lightning.pytorch as pl

from diffgan.errors import UserError
from diffgan.teachers.base import Teacher
from diffgan.teachers.earlier import remedy_for

PRECISIONS = ("32-true", "bf16-mixed")
CURVES = ("g", "d", "health")  # groups of curves of every method


def check_precision(precision: str) -> None:
    """Refuse precisions other than `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision} is not supported; use one of {', '.join(PRECISIONS)}")


def only_timestep(timesteps: Sequence[int] | None) -> int | None:
    """The timestep at which the student is called; None is the last one.

    Raises:
        UserError: there is not exactly one.
    """
    if timesteps is None:
        return None
    if len(timesteps) != 1:
        raise UserError(f"timesteps: {list(timesteps)} must have one entry (students of several steps: not yet)")
    return timesteps[0]


def check_monitors(callbacks: Iterable[pl.Callback], networks: Iterable[str]) -> None:
    """Refuse a callback (EarlyStopping, ModelCheckpoint) that monitors a curve, which Lightning does not know.

    Args:
        callbacks: of the trainer.
        networks: names of the networks, which are groups of curves.
    """
    groups = {*CURVES, *networks}
    for callback in callbacks:
        monitor = getattr(callback, "monitor", None)
        if monitor and monitor.split("/")[0] in groups:
            raise UserError(
                f"{type(callback).__name__}: monitor {monitor} is a curve of the training; use a metric of validation, "
                "such as validation/mse"
            )


def check_latents(datamodule: pl.LightningDataModule, teacher: Teacher) -> None:
    """Refuse pairs of another size than the teacher's latents.

    Args:
        datamodule: its `pairs` has the manifest, its `folder` is named in the message.
        teacher: in the size of the model.
    """
    sides, own = (
        datamodule.pairs.manifest.image_size,
        [teacher.space.factor * side for side in teacher.latent_shape[1:]],
    )
    if sides != own:
        raise UserError(
            f"{datamodule.folder}: the pairs are latents of images of {sides}, the model's size is {own}; set size to "
            f"{sides}, or make new pairs"
        )


def warn_of_long_warmup(name: str, warmup: int, images: int) -> None:
    """Print a line if a training of `images` images ends before its warm-up.

    name: of the argument that gives the warm-up.
    """
    if warmup > images:
        reached = "the learning rate does not reach its value"
        print(
            f"diffgan: warning: {name}: {warmup} is more than the {images} images there are: {reached}", file=sys.stderr
        )


def check_datamodule(datamodule: pl.LightningDataModule) -> None:
    """Refuse data that are no pair set."""
    if not hasattr(getattr(datamodule, "pairs", None), "manifest"):
        raise UserError(f"data: a distillation requires LatentPairs, and this is {type(datamodule).__name__}")


def check_pairs(datamodule: pl.LightningDataModule, teacher: str, teacher_digest: str) -> None:
    """Refuse pairs that were made with another teacher.

    Args:
        datamodule: its `pairs` has the manifest, its `folder` is named in the message.
        teacher: path of the model's teacher.
        teacher_digest: digest of that teacher's weights.
    """
    manifest = datamodule.pairs.manifest
    if manifest.teacher_digest != teacher_digest:
        remedy = remedy_for(manifest.teacher_digest, "use that teacher, or make new pairs")
        raise UserError(
            f"{datamodule.folder}: the pairs are of another teacher (made with {manifest.teacher}, whose weights "
            f"differ from those of {teacher}); {remedy}"
        )
