"""The callback that writes generated pairs to a pair set, as one of any number of workers."""

import dataclasses
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from datamodules.prompts import Prompts
from diffgan.errors import UserError
from diffgan.numbers import require
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.devices import device_kind
from diffgan.pairs.generation import PairGeneration
from diffgan.pairs.manifest import Manifest, versions
from diffgan.pairs.opening import bytes_are_compared, open_pair_set
from diffgan.pairs.work_queue import WorkQueue
from diffgan.storage.outputs import require_name
from diffgan.teachers import solvers
from diffgan.teachers.digest import weights_digest
from diffgan.training.refusals import refusing_together

NOT_COMPARED = "; `diffgan pairs verify` compares their bytes"


class PairWriter(pl.Callback):
    """Write the predictions of `PairGeneration` as a pair set, together with every other worker on the same folder.

    Workers are the processes of a trainer, or the same command started many times, in any number and at any time. The
    bytes of a shard depend on the manifest and the batch size alone, so the set is the same however often it was
    interrupted and whichever worker made it. Another batch size, number of threads or kind of machine may change a
    latent by rounding; shards say with which they were made.

    Args:
        folder: of the pair set: a path or URL.
        shard_size: pairs per shard; readers shuffle within a shard, and workers claim whole shards.
        store_noise: store z beside the latents (three times the disk), for readers that cannot draw it.
        lease_seconds: a shard whose worker finished no batch for so long is made by another; longer than the slowest
            batch takes, compiling included. (A worker that died on the same machine is noticed at once.)
    """

    def __init__(self, folder: str | Path, shard_size: int, store_noise: bool = False, lease_seconds: float = 600.0):
        self.folder, self.shard_size, self.store_noise = folder, shard_size, store_noise
        self.lease_seconds = lease_seconds
        self.work_queue: WorkQueue | None = None
        self.truncated = 0  # prompts of this process that the tokenizer truncated

    def setup(self, trainer: pl.Trainer, pl_module: PairGeneration, stage: str) -> None:
        """Open the set, and have the datamodule take its batches from the work queue.

        Raises:
            UserError, SystemExit: as `stop_together`, if an argument is out of range, the teacher cannot be loaded, or
                the folder is refused.
        """
        with refusing_together(trainer):
            self.work_queue = self._open_work_queue(trainer, pl_module, stage)
        trainer.datamodule.work = self.work_queue
        trainer.predict_loop.return_predictions = False  # they are on disk; in memory they would accumulate
        if trainer.progress_bar_callback is not None:  # Lightning's own, which cannot know the number of batches
            trainer.progress_bar_callback.disable()

    def on_predict_start(self, trainer: pl.Trainer, pl_module: PairGeneration) -> None:
        manifest = self.work_queue.manifest
        if trainer.is_global_zero and self.work_queue.pairs_done() == manifest.pairs:
            note = "" if bytes_are_compared(self.work_queue.store, manifest) else NOT_COMPARED
            print(f"diffgan: {self.folder}: complete, all {manifest.pairs} pairs exist{note}", file=sys.stderr)

    def on_predict_batch_end(self, trainer, pl_module, outputs: PairBatch, batch, batch_idx, dataloader_idx=0) -> None:
        truncated = sum(pl_module.teacher.truncated(outputs.prompt))  # here: a tokenizer must stay in one thread
        self.work_queue.submit(outputs, truncated)
        self.truncated += truncated
        _exit_after_sigterm(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: PairGeneration) -> None:
        self.work_queue.writer.finish()  # it may end before the set is complete: limit_predict_batches

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close()

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._close()
        if self.truncated:
            tokens = pl_module.teacher.tokenizer.model_max_length
            print(f"diffgan: {self.truncated} pairs: prompt truncated to {tokens} tokens", file=sys.stderr)

    def _close(self) -> None:
        if self.work_queue is not None:
            self.work_queue.close()

    def _open_work_queue(self, trainer: pl.Trainer, pl_module: PairGeneration, stage: str) -> WorkQueue:
        """Raises: UserError if an argument is out of range, the teacher cannot be loaded, or the folder is refused."""
        require("shard_size", self.shard_size, least=1)
        require("lease_seconds", self.lease_seconds, above=0)
        require_name("folder", self.folder)
        data: Prompts = trainer.datamodule
        if not isinstance(data, Prompts) or not isinstance(pl_module, PairGeneration):
            raise UserError("PairWriter: makes pairs, which requires the model PairGeneration and the data Prompts")
        pl_module.setup(stage)
        manifest = self._manifest(pl_module, data, trainer.precision, trainer.strategy.root_device)
        store = open_pair_set(self.folder, manifest, self.lease_seconds)
        if not Manifest.read(store).device:  # begun by an older version: its shards do not say how they were made
            manifest = dataclasses.replace(manifest, device="")
        return WorkQueue(
            store, manifest, data.batch_size, self.lease_seconds, on_pause=lambda: _exit_after_sigterm(trainer)
        )

    def _manifest(self, module: PairGeneration, data: Prompts, precision: str, device: torch.device) -> Manifest:
        teacher = module.teacher
        return Manifest(
            teacher=module.teacher_path,
            teacher_digest=weights_digest(teacher),
            scheduler=solvers.describe(module.solver, teacher.scheduler),
            steps=module.steps,
            guidance=module.guidance,
            guidance_kind=teacher.guidance_kind,
            timestep_spacing=teacher.schedule.timestep_spacing,
            precision=precision,
            latent_space=teacher.space.as_dict(),
            latent_shape=list(teacher.latent_shape),
            prompts_digest=data.prompts_digest,
            seed_base=data.seed_base,
            pairs=data.pairs,
            shard_size=self.shard_size,
            store_noise=self.store_noise,
            batch_size=data.batch_size,
            versions=versions(),
            compile=module.compile_network,
            device=device_kind(device),
        )


def _exit_after_sigterm(trainer: pl.Trainer) -> None:
    """End the process if it received SIGTERM (a preempted machine); what it has finished is saved."""
    if trainer.received_sigterm:
        raise SystemExit(128 + signal.SIGTERM)
