"""Pairs to disk, by as many workers as there are, so that the same command after a crash finishes the set."""

import math
import signal
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from datamodules.prompts import Prompts
from diffgan.errors import UserError, print_error
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.claims import CLAIMS
from diffgan.pairs.generation import PairGeneration
from diffgan.pairs.manifest import MANIFEST, Manifest, versions
from diffgan.pairs.partial_shards import PARTS, require_own_leftovers
from diffgan.pairs.shard_format import read_shard, shards_size
from diffgan.pairs.work_queue import WorkQueue
from diffgan.storage.local import LocalStore
from diffgan.storage.open import open_store
from diffgan.storage.store import Store
from diffgan.teachers import solvers
from diffgan.teachers.digest import weights_digest

COMPARED_BYTES = 10e9  # what every worker's start may read, in ten seconds
UNCOMPARED = "; `diffgan pairs verify` compares their bytes"


class PairWriter(pl.Callback):
    """Write the predictions of `PairGeneration` as a pair set, together with every other worker on the same folder.

    Workers are the processes of a trainer, or the same command started many times, in any number and at any time. The
    bytes of a shard follow from the manifest and from how it is cut into batches, so the set is the same however often
    it was interrupted and whoever made it. Another batch size, number of threads or kind of machine may move a latent
    by rounding.

    Args:
        folder: of the pair set: a path or URL.
        shard_size: pairs a shard; what readers shuffle within, and what workers share out among them.
        store_noise: keep z beside the latents (three times the disk), for readers that cannot draw it.
        lease_seconds: a shard whose worker finished no batch for so long is made by another; longer than the slowest
            batch takes, compiling included. (A worker that died on the same machine is noticed at once.)
    """

    def __init__(self, folder: str | Path, shard_size: int, store_noise: bool = False, lease_seconds: float = 600.0):
        self.folder, self.shard_size, self.store_noise = folder, shard_size, store_noise
        self.lease_seconds = lease_seconds
        self.workshop: WorkQueue | None = None
        self.truncated = 0  # prompts that this process had the tokenizer cut

    def setup(self, trainer: pl.Trainer, pl_module: PairGeneration, stage: str) -> None:
        refusal = None
        try:
            self.workshop = self._open(trainer, pl_module, stage)
        except UserError as error:
            refusal = error
        stop_together(trainer, refusal)
        trainer.datamodule.work = self.workshop
        trainer.predict_loop.return_predictions = False  # they are on disk; in memory they would pile up
        if trainer.progress_bar_callback is not None:  # Lightning's own: it cannot know how many batches there will be
            trainer.progress_bar_callback.disable()

    def _open(self, trainer: pl.Trainer, pl_module: PairGeneration, stage: str) -> WorkQueue:
        """The set's workshop.

        Raises:
            UserError: an argument is out of range, the teacher cannot be loaded, or the folder is refused.
        """
        if self.shard_size < 1:
            raise UserError(f"shard_size: {self.shard_size} must be at least 1")
        if not 0 < self.lease_seconds < math.inf:
            raise UserError(f"lease_seconds: {self.lease_seconds} must be above 0 and finite")
        data: Prompts = trainer.datamodule
        pl_module.setup(stage)
        manifest = self._describe(pl_module, data, trainer.precision)
        store = open_store(self.folder)
        _open_set(store, manifest, self.lease_seconds)
        return WorkQueue(store, manifest, data.batch_size, self.lease_seconds, on_pause=lambda: _leave_if_told(trainer))

    def on_predict_start(self, trainer: pl.Trainer, pl_module: PairGeneration) -> None:
        pairs = self.workshop.manifest.pairs
        if trainer.is_global_zero and self.workshop.made() == pairs:
            more = "" if _is_compared(self.workshop.store, self.workshop.manifest) else UNCOMPARED
            print(f"diffgan: {self.folder}: all {pairs} pairs are there{more}", file=sys.stderr)

    def on_predict_batch_end(self, trainer, pl_module, outputs: PairBatch, batch, batch_idx, dataloader_idx=0) -> None:
        truncated = sum(pl_module.teacher.truncated(outputs.prompt))  # tokenizers are not for two threads
        self.workshop.keep(outputs, truncated)
        self.truncated += truncated
        _leave_if_told(trainer)

    def on_predict_end(self, trainer: pl.Trainer, pl_module: PairGeneration) -> None:
        self.workshop.background.finish()  # it may end before the set is whole: limit_predict_batches

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close()

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._close()
        if self.truncated:
            most = pl_module.teacher.tokenizer.model_max_length
            print(f"diffgan: {self.truncated} pairs: prompt cut, it had more than {most} tokens", file=sys.stderr)

    def _close(self) -> None:
        if self.workshop is not None:
            self.workshop.close()

    def _describe(self, module: PairGeneration, data: Prompts, precision: str) -> Manifest:
        teacher = module.teacher
        return Manifest(
            teacher=module.teacher_path,
            teacher_digest=weights_digest(teacher),
            scheduler=solvers.describe(module.solver, teacher.scheduler),
            steps=module.steps,
            guidance=module.guidance,
            timestep_spacing=teacher.scheduler.config.timestep_spacing,
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
        )


def stop_together(trainer: pl.Trainer, refusal: UserError | None) -> None:
    """Stop, with one line, if any process of a trainer refuses: the others would wait for it for ever.

    Of those that refuse the first tells why, before a launcher sees the others leave and ends it.

    Raises:
        UserError: the only process refuses.
        SystemExit: one of several does.
    """
    if trainer.world_size == 1:
        if refusal is not None:
            raise refusal
        return
    rank = trainer.world_size if refusal is None else trainer.global_rank
    first = int(trainer.strategy.reduce(torch.tensor(rank, device=trainer.strategy.root_device), reduce_op="min"))
    if first < trainer.world_size:
        if first == trainer.global_rank:
            print_error(refusal)
        trainer.strategy.barrier()
        raise SystemExit(1)


def _open_set(store: Store, manifest: Manifest, lease_seconds: float) -> None:
    """Create or check the set.

    Raises:
        UserError: the folder cannot be written, holds another set, or a shard that is damaged.
    """
    if store.read(MANIFEST) is None:
        require_own_leftovers(store, manifest)
    if not store.create(MANIFEST, manifest.content()):
        held = Manifest.parse(store.read(MANIFEST), store.path(MANIFEST))
        manifest.require(held.identity(), store.path(MANIFEST))
        for name in ("batch_size", "compile"):
            before, now = getattr(held, name), getattr(manifest, name)
            if before != now:
                print(
                    f"diffgan: {store.place}: begun with {name} {before}, goes on with {now}: latents may differ by "
                    "rounding from those of an unbroken set",
                    file=sys.stderr,
                )
    store.sweep(lease_seconds, (CLAIMS, PARTS))
    if isinstance(store, LocalStore):  # every remote shard would have to be fetched: see `diffgan pairs verify`
        compare = _is_compared(store, manifest)
        for shard in range(manifest.shards):
            if manifest.file(store.folder, shard).exists():
                read_shard(store, manifest, shard, compare)


def _is_compared(store: Store, manifest: Manifest) -> bool:
    """Whether the bytes of the shards that are there are compared with their digests at the start."""
    return isinstance(store, LocalStore) and shards_size(store, manifest) <= COMPARED_BYTES


def _leave_if_told(trainer: pl.Trainer) -> None:
    """End the process, what it has finished saved, if the machine was taken away (SIGTERM)."""
    if trainer.received_sigterm:
        raise SystemExit(128 + signal.SIGTERM)
