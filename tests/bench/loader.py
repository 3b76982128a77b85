"""Reading pairs: pairs per second against webdataset, the share of a training that waits, and the disk of a pair.

Both loaders run in one process, on one thread, and return the same tensors: latent and noise (N, C, H, W) float32,
seeds, prompts. Seconds are the processor's, so that they do not depend on other programs. The webdataset holds a pair
as latent.npy (float16), txt, cls (the seed) and, where noise is stored, noise.npy (float32); it is read in the order
of the file, while `LatentPairs` shuffles. Drawing noise takes both the same time. The set is opened and checked before
(once in a training).
"""

import io
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import webdataset as wds

from callbacks.ema import EMA
from datamodules.latent_pairs import LatentPairs, PairStream
from diffgan.noise import draw_noise
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.generation import PairGeneration
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.pair_set import PairSet
from tests.bench.overhead import QUIET, STEPS, distillation, write_pairs
from tests.pair_sets import write_shard

BATCH, ROUNDS, ROWS = 16, 5, 256
GLYPHS, SD15 = (4, 16, 16), (4, 64, 64)
PROMPT = "a photograph of an old red bicycle leaning against a white wall, 35mm"  # as long as the average of LAION
TOKENS, WIDTH = 77, 768


class Shape(NamedTuple):
    """A set to be measured: latent shape, and whether the noise is on disk."""

    latent: tuple[int, int, int]
    store_noise: bool


def write_set(folder: Path, shape: Shape, rows: int = ROWS, shards: int = 2) -> Manifest:
    """Shards of random latents."""
    teacher = {"teacher": "t", "teacher_digest": "d", "scheduler": {}, "timestep_spacing": "trailing", "steps": 1}
    settings = {"precision": "32-true", "guidance": 1.0, "latent_space": {}, "prompts_digest": "p", "seed_base": 0}
    sizes = {
        "pairs": shards * rows,
        "shard_size": rows,
        "store_noise": shape.store_noise,
        "batch_size": 1,
        "versions": {},
    }
    manifest = Manifest(**teacher, **settings, **sizes, latent_shape=list(shape.latent))
    manifest.write(folder)
    for shard in range(manifest.shards):
        seed = torch.tensor(manifest.span(shard))
        noise = draw_noise(seed, shape.latent)
        prompts = [f"{PROMPT} {i}" for i in manifest.span(shard)]
        write_shard(folder, manifest, shard, PairBatch(seed, noise, prompts, torch.randn(len(seed), *shape.latent)))
    return manifest


def write_tar(file: Path, pairs: PairSet) -> None:
    with wds.TarWriter(str(file)) as tar:
        for i in range(len(pairs)):
            pair = pairs.read([i])
            sample = {"__key__": f"{i:06d}", "txt": pair.prompt[0], "cls": int(pair.seed)}
            sample["latent.npy"] = _npy(pair.latent[0].half())
            if pairs.manifest.store_noise:
                sample["noise.npy"] = _npy(pair.noise[0])
            tar.write(sample)


def _npy(tensor: torch.Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, tensor.numpy())
    return file.getvalue()


def read_tar(file: Path, shape: Shape) -> Iterator[PairBatch]:
    fields = ["cls", "txt", "latent.npy", *(["noise.npy"] if shape.store_noise else [])]
    samples = wds.WebDataset(str(file), shardshuffle=False).decode().to_tuple(*fields)
    for seed, prompt, latent, *noise in samples.batched(BATCH):
        seed = torch.as_tensor(seed)
        drawn = torch.from_numpy(noise[0]) if noise else draw_noise(seed, shape.latent)
        yield PairBatch(seed, drawn, prompt, torch.from_numpy(latent).float())


def require_same(ours: Iterable[PairBatch], theirs: Iterable[PairBatch]) -> None:
    """Both loaders return the same tensors, up to the order of `ours`."""
    ours, theirs = list(ours), list(theirs)
    for name in ("latent", "noise"):
        a, b = (_column(batches, name) for batches in (ours, theirs))
        order = _column(ours, "seed")
        assert torch.equal(a, b[order]) and a.dtype == b.dtype == torch.float32


def _column(batches: list[PairBatch], name: str) -> torch.Tensor:
    return torch.cat([getattr(batch, name) for batch in batches])


def cpu_seconds(epoch: Callable[[], Iterable[PairBatch]]) -> float:
    """Of an epoch whose batches are freed as soon as they are read, as in a training."""
    start = time.process_time()
    deque(epoch(), maxlen=0)
    return time.process_time() - start


def throughput(shape: Shape) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, tar = Path(name), Path(name) / "pairs.tar"
        write_set(folder, shape)
        write_tar(tar, PairSet(folder))
        data = LatentPairs(folder, BATCH, validation_pairs=0)
        data.setup("fit")
        readers = (data.train_dataloader, lambda: read_tar(tar, shape))
        require_same(*(read() for read in readers))
        turns = [tuple(map(cpu_seconds, readers)) for _ in range(ROUNDS)]
    ours, theirs = (2 * ROWS / statistics.median(seconds) for seconds in zip(*turns, strict=True))
    noise = "noise stored" if shape.store_noise else "noise drawn"
    latent = "x".join(map(str, shape.latent))
    print(f"{latent}, {noise}: {ours:6.0f} pairs/s, webdataset {theirs:6.0f}: {ours / theirs:5.1f} times", flush=True)


# ---- interleaving ----


def interleaving(mixed: int = 8) -> None:
    """Pairs per processor second of many small shards, read one after another and `mixed` at once."""
    with tempfile.TemporaryDirectory() as name:
        write_set(Path(name), Shape(SD15, True), rows=32, shards=32)
        streams = []
        for interleave in (1, mixed):
            data = LatentPairs(name, BATCH, validation_pairs=0, interleave=interleave)
            data.setup("fit")
            streams.append(data.train_dataloader)
        turns = [tuple(map(cpu_seconds, streams)) for _ in range(ROUNDS)]
    alone, together = (32 * 32 / statistics.median(seconds) for seconds in zip(*turns, strict=True))
    print(
        f"32 shards of 32, one at a time {alone:6.0f} pairs/s, {mixed} at once {together:6.0f}: {together / alone:.2f}"
    )


# ---- waiting ----


class TimedStream(PairStream):
    """Counts the seconds spent waiting for batches."""

    waited = 0.0

    def __iter__(self) -> Iterator[PairBatch]:
        batches = super().__iter__()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch


class TimedPairs(LatentPairs):
    def train_dataloader(self) -> TimedStream:
        plain = super().train_dataloader()
        self.stream = TimedStream(plain.batches, plain.workers)
        return self.stream


class WaitingShare(pl.Callback):
    """Share of a training's time spent waiting for the loader, without the first two batches."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:
            self.waited, self.started = trainer.datamodule.stream.waited, time.perf_counter()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx > 2:
            self.share = (trainer.datamodule.stream.waited - self.waited) / (time.perf_counter() - self.started)


def waiting_share() -> float:
    """Of a training of the miniature by regression alone: the cheapest step there is, so the largest share."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(PairGeneration("glyphs", STEPS, 1.0), Path(folder))
        waiting = WaitingShare()
        trainer = pl.Trainer(max_epochs=-1, limit_val_batches=0, callbacks=[EMA(1000.0), waiting], **QUIET)
        trainer.fit(distillation(images=BATCH * 12), TimedPairs(folder, BATCH, validation_pairs=0))
    return waiting.share


# ---- disk ----


def bytes_per_pair(store_noise: bool) -> float:
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_set(Path(folder), Shape(SD15, store_noise))
        return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors")) / manifest.pairs


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for shape in (Shape(latent, stored) for latent in (SD15, GLYPHS) for stored in (True, False)):
        throughput(shape)
    interleaving()
    print("pairs per processor second, one process   (aim: at least 5 times with stored noise)")
    print(f"share of a training that waits for pairs  {waiting_share():.2%}   (aim: below 1%)", flush=True)
    drawn, stored = bytes_per_pair(False), bytes_per_pair(True)
    text = TOKENS * WIDTH
    print(
        f"disk per SD1.5 pair: {drawn / 1e3:.1f} kB; with its noise {stored / 1e3:.1f} kB; with noise and embedding "
        f"{(stored + 2 * text) / 1e3:.1f} kB in float16, {(stored + 4 * text) / 1e3:.1f} kB in float32"
    )


if __name__ == "__main__":
    main()
