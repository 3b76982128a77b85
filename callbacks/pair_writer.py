"""Pairs to disk, shard by shard, so that the same command after a crash finishes the set."""

import fcntl
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

from datamodules.prompts import Prompts
from diffgan import solvers
from diffgan.errors import UserError
from diffgan.files import PARTIAL
from diffgan.generation import PairGeneration
from diffgan.pairs import MANIFEST, Manifest, PairBatch, read_shard, versions, weights_digest, write_shard
from diffgan.teacher import Teacher


class PairWriter(pl.Callback):
    """Write the predictions of `PairGeneration` as a pair set; whole shards that are there already are left alone.

    A shard is made by one process from its first pair to its last, in batches cut the same way on every run, so the
    set is the same bytes however often it was interrupted and on however many processes it was made. Another batch
    size, number of threads or machine may move a latent by rounding.

    Args:
        folder: of the pair set.
        shard_size: pairs a shard; what a crash can cost each process, and what readers shuffle within.
        store_noise: keep z beside the latents (three times the disk), for readers that cannot draw it.
    """

    def __init__(self, folder: Path, shard_size: int, store_noise: bool = False):
        self.folder, self.shard_size, self.store_noise = Path(folder), shard_size, store_noise
        self.manifest: Manifest | None = None
        self.parts: list[PairBatch] = []
        self.truncated = 0  # prompts that this process had the tokenizer cut
        self.lock = None

    def setup(self, trainer: pl.Trainer, pl_module: PairGeneration, stage: str) -> None:
        if self.shard_size < 1:
            raise UserError(f"shard_size: {self.shard_size} must be at least 1")
        data: Prompts = trainer.datamodule
        pl_module.setup(stage)
        self.manifest = self._describe(pl_module, data, trainer.precision)
        missing = self._agree_on_missing(trainer)
        data.spans = [self.manifest.span(s) for s in missing[trainer.global_rank :: trainer.world_size]]
        data.finished = data.pairs - sum(len(self.manifest.span(s)) for s in missing)
        trainer.predict_loop.return_predictions = False  # they are on disk; in memory they would pile up

    def on_predict_batch_end(self, trainer, pl_module, outputs: PairBatch, batch, batch_idx, dataloader_idx=0) -> None:
        self.parts.append(outputs)
        shard = (int(self.parts[0].seed[0]) - self.manifest.seed_base) // self.shard_size
        if sum(len(part.seed) for part in self.parts) == len(self.manifest.span(shard)):
            self._write(shard, pl_module.teacher)

    def teardown(self, trainer, pl_module, stage: str) -> None:
        self._close_set()
        if self.truncated:
            most = pl_module.teacher.tokenizer.model_max_length
            print(f"diffgan: {self.truncated} pairs: prompt cut, it had more than {most} tokens", file=sys.stderr)

    def on_exception(self, trainer, pl_module, exception) -> None:
        self._close_set()

    def _write(self, shard: int, teacher: Teacher) -> None:
        pairs, self.parts = _join(self.parts), []
        truncated = sum(teacher.truncated(pairs.prompt))
        write_shard(self.folder, self.manifest, shard, pairs, truncated)
        self.truncated += truncated

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
        )

    def _agree_on_missing(self, trainer: pl.Trainer) -> list[int]:
        """What the first process finds missing; its refusal stops the others too, which would wait for ever."""
        refusal, missing = None, []
        if trainer.is_global_zero:
            try:
                missing = self._open_set()
            except UserError as error:
                refusal = error
        refused, missing = trainer.strategy.broadcast((refusal is not None, missing))
        if refused:
            raise refusal or SystemExit(1)
        return missing

    def _open_set(self) -> list[int]:
        """Create or check the folder, keep other runs out of it, tidy it; the shards that are missing."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be a pair set's folder: {error.strerror}") from error
        if (self.folder / MANIFEST).exists():
            self.manifest.require(Manifest.read(self.folder).identity(), self.folder / MANIFEST)
        else:
            self.manifest.write(self.folder)
        self._lock()
        for leftover in self.folder.glob(f"*{PARTIAL}"):
            leftover.unlink()
        missing = [shard for shard in range(self.manifest.shards) if not self._is_there(shard)]
        if not missing:
            print(f"diffgan: {self.folder}: all {self.manifest.pairs} pairs are there", file=sys.stderr)
        return missing

    def _is_there(self, shard: int) -> bool:
        if not self.manifest.file(self.folder, shard).exists():
            return False
        read_shard(self.folder, self.manifest, shard)
        return True

    def _lock(self) -> None:
        """Hold the manifest as long as this run lives; the system lets go of it when the process dies."""
        self.lock = open(self.folder / MANIFEST, "r+b")  # noqa: SIM115
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.folder}: another run is writing this pair set; wait for it or stop it") from error

    def _close_set(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def _join(parts: list[PairBatch]) -> PairBatch:
    return PairBatch(
        seed=torch.cat([part.seed for part in parts]),
        noise=torch.cat([part.noise for part in parts]),
        prompt=[prompt for part in parts for prompt in part.prompt],
        latent=torch.cat([part.latent for part in parts]),
    )
