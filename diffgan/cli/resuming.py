"""Which checkpoint a run resumes from, and whether it may: one `fit` in a folder, the same experiment, a whole file."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch import Trainer

from callbacks.image_checkpoint import ImageCheckpoint
from callbacks.run_folder import run_folder
from diffgan.cli.config_difference import difference_from_run
from diffgan.errors import UserError
from diffgan.storage.folder_lock import FolderLock
from diffgan.training.checkpoints import BEST, LAST, PREVIOUS, find_damage
from diffgan.training.refusals import stop_together

NAMED = {"previous": PREVIOUS, "best": BEST}  # values of --ckpt_path beside "last" and files
EXPERIMENT = ("seed_everything", "model", "data")  # parts of a configuration that make a run what it is
LONGER = ("images", "cooldown_images", "max_steps", "steps", "cooldown")
MEMORY = ("accumulate", "gradient_checkpointing", "workers", "cache_gb")
MAY_CHANGE = LONGER + MEMORY  # the same run, made longer, or in the memory that there is


class FirstProcess(pl.Callback):
    """Checks that the first process makes for all, before the trainer starts: reading a large file, locking a folder.

    One process refuses at once. Several cannot talk to each other yet (Lightning starts them later, or an outer
    launcher has started them side by side), so the first keeps its refusal, and all end together in `setup`, before
    anything is written.

    Args:
        trainer: gets this callback, as its first.
    """

    def __init__(self, trainer: Trainer):
        self._trainer, self._refusal = trainer, None
        self._held: list[Any] = []
        self._folder = run_folder(trainer)
        self._created = [each for each in (self._folder, *self._folder.parents) if not each.exists()]
        trainer.callbacks.insert(0, self)

    def check(self, check: Callable[[], Any]) -> None:
        """Call `check` on the first process, unless it has refused already; what it returns is kept.

        Raises:
            UserError: the only process refuses.
        """
        if not self._trainer.is_global_zero or self._refusal is not None:
            return
        try:
            self._held.append(check())
        except UserError as error:
            if self._trainer.world_size == 1:
                raise
            self._refusal = error

    def end_checks(self) -> None:
        """Call after the last check: a process that refuses opens no logger's files."""
        if self._refusal is not None:
            self._trainer.loggers = []

    def setup(self, trainer: Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Raises SystemExit on all processes if the first has refused; it prints why."""
        stop_together(trainer, self._refusal)

    @contextlib.contextmanager
    def withdrawing(self) -> Iterator[None]:
        """Context: after an error before the run's record was written, a folder that is new is removed again."""
        try:
            yield
        except BaseException:
            if self._locks and self._created and not (self._folder / "fit.yaml").exists():
                shutil.rmtree(self._folder, ignore_errors=True)
                for parent in self._created[1:]:
                    with contextlib.suppress(OSError):  # it is not empty
                        parent.rmdir()
                self._release()
            raise

    def teardown(self, trainer: Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._release()

    @property
    def _locks(self) -> list[FolderLock]:
        return [each for each in self._held if isinstance(each, FolderLock)]

    def _release(self) -> None:
        for lock in self._locks:
            lock.release()
        self._held.clear()


def lock_run(trainer: Trainer) -> Callable[[], FolderLock]:
    """The check that no other process runs `fit` in the run's folder."""
    folder = run_folder(trainer)
    return lambda: FolderLock(folder, "fit")


def choose_checkpoint(trainer: Trainer, asked: str | None) -> Path | None:
    """The checkpoint that `--ckpt_path` names; None: the run's newest, if there is any.

    asked: None, "last", "previous", "best" or a file.
    """
    if asked in (None, "last"):
        return ImageCheckpoint.newest(trainer)
    return run_folder(trainer) / "checkpoints" / NAMED[asked] if asked in NAMED else Path(asked)


def set_aside_if_broken(newest: Path | None) -> None:
    """Rename a broken `last.ckpt`, which the next save would otherwise keep in the place of the good one."""
    if newest is not None and newest.name == LAST and find_damage(newest):
        newest.replace(newest.with_name("broken.ckpt"))


def require_file(checkpoint: Path) -> None:
    """Raises UserError if a checkpoint is not one file.

    A directory (a sharded checkpoint) is refused: nothing here writes one, and PyTorch unpickles what lies in it.
    """
    if checkpoint.is_dir():
        raise UserError(f"--ckpt_path {checkpoint}: is a directory; name a file, e.g. checkpoints/last.ckpt of a run")
    if not checkpoint.is_file():
        raise UserError(f"--ckpt_path {checkpoint}: no such file")


def require_whole(checkpoint: Path) -> None:
    """Read a checkpoint file as a whole; raises UserError if it is broken."""
    if (reason := find_damage(checkpoint)) is None:
        return
    before, offer = checkpoint.with_name(PREVIOUS), ""
    if before.is_file() and before != checkpoint:
        offer = f"; {before} is the one before: --ckpt_path previous"
    raise UserError(f"{checkpoint}: the checkpoint is broken ({reason}){offer}")


def require_same_experiment(record: Path, config: dict[str, Any]) -> None:
    """Raises UserError if a run's folder holds another experiment than the one to be continued.

    record: `fit.yaml` of the run, if it exists.  config: of the command.
    """
    if (changed := difference_from_run(record, config, EXPERIMENT, MAY_CHANGE)) is not None:
        raise UserError(
            f"{record}: {changed}; choose another folder "
            "(trainer.logger), or continue with the change on purpose: --ckpt_path last"
        )
