"""Which pairs a training run reads, and in which order."""

from dataclasses import dataclass, field
from itertools import chain, pairwise

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy, Strategy
from torch import nn

from datamodules.latent_pairs import LatentPairs, shuffled
from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.manifest import Manifest
from tests.pair_sets import write_shard

SHAPE, PAIRS, HELD_OUT, BATCH, SHARD = (4, 2, 2), 47, 7, 8, 9  # 40 training pairs: 5 batches of 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A set whose latent i is filled with i."""
    folder = tmp_path_factory.mktemp("pairs")
    values = {
        "teacher": "t",
        "teacher_digest": "d",
        "scheduler": {},
        "timestep_spacing": "trailing",
        "precision": "32-true",
    }
    made = {"steps": 1, "guidance": 1.0, "latent_space": {}, "latent_shape": list(SHAPE), "prompts_digest": "p"}
    size = {"seed_base": 5, "pairs": PAIRS, "shard_size": SHARD, "store_noise": False, "batch_size": 1, "versions": {}}
    manifest = Manifest(**values, **made, **size)
    manifest.write(folder)
    for shard in range(manifest.shards):
        span = manifest.span(shard)
        seed = torch.tensor([5 + i for i in span])
        latent = torch.stack([torch.full(SHAPE, float(i)) for i in span])
        write_shard(folder, manifest, shard, PairBatch(seed, draw_noise(seed, SHAPE), [f"p{i}" for i in span], latent))
    return folder


@dataclass
class Place:
    """The attributes of a trainer that the datamodule uses."""

    global_rank: int = 0
    world_size: int = 1
    strategy: Strategy = field(default_factory=lambda: SingleDeviceStrategy("cpu"))


def opened(folder, place=None, **changes) -> LatentPairs:
    settings = {"batch_size": BATCH, "validation_pairs": HELD_OUT, "seed": 3} | changes
    data = LatentPairs(folder, **settings)
    data.trainer = place
    data.setup("fit")
    return data


def numbers(batch: PairBatch) -> list[int]:
    """Numbers of the pairs of a batch; all of its fields must belong to the same pairs."""
    pair_numbers = (batch.seed - 5).tolist()
    assert batch.prompt == [f"p{i}" for i in pair_numbers]
    assert batch.latent[:, 0, 0, 0].tolist() == pair_numbers
    assert torch.equal(batch.noise, draw_noise(batch.seed, SHAPE))
    return pair_numbers


def flat(lists) -> list:
    return list(chain.from_iterable(lists))


def stretches(loader, count: int) -> list[list[list[int]]]:
    return [[numbers(batch) for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("interleave", [1, 2, 3, 99])  # five shards, the last one smaller
def test_every_training_pair_is_read_once_per_epoch_and_held_out_pairs_never(folder, interleave):
    data = opened(folder, interleave=interleave)
    epochs = stretches(data.train_dataloader(), 3)
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [BATCH] * len(data.train_dataloader())
        assert sorted(flat(epoch)) == list(range(PAIRS - HELD_OUT))
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(flat(stretches(data.val_dataloader(), 1)[0])) == list(range(PAIRS - HELD_OUT, PAIRS))


def test_pairs_that_do_not_fill_a_batch_are_not_lost(folder):
    stream = opened(folder, batch_size=12).train_dataloader()  # 3 batches a stretch, 40 pairs a pass
    seen = flat(flat(stretches(stream, 4)))
    assert sorted(seen[:40]) == sorted(seen[40:80]) == list(range(40))


def test_the_order_is_a_function_of_the_seed(folder):
    assert stretches(opened(folder).train_dataloader(), 2) == stretches(opened(folder).train_dataloader(), 2)
    assert stretches(opened(folder).train_dataloader(), 1) != stretches(opened(folder, seed=4).train_dataloader(), 1)


def test_shards_are_read_one_after_another(folder):
    epoch = flat(stretches(opened(folder).train_dataloader(), 1)[0])
    shards = [i // SHARD for i in epoch]
    assert sum(a != b for a, b in pairwise(shards)) == len(set(shards)) - 1
    assert epoch != sorted(epoch)


def test_the_order_without_interleaving_is_that_of_earlier_versions():
    """Runs of 0.2 continue in it."""
    random = np.random.default_rng([3, 1])
    starts = random.permutation(5) * SHARD
    expected = np.concatenate([start + random.permutation(min(SHARD, 40 - start)) for start in starts])
    assert np.array_equal(shuffled(40, SHARD, 3, 1).numbers, expected)


def test_interleaved_shards_are_mixed(folder):
    """Groups of two, two and one of the five shards: batches draw from all shards of a group, groups do not mix."""
    epoch = np.array(flat(stretches(opened(folder, interleave=2).train_dataloader(), 1)[0])) // SHARD
    order = shuffled(40, SHARD, 3, 0, 2)
    start = 0
    for group in (order.shards[:2], order.shards[2:4], order.shards[4:]):
        end = int(order.ends[list(order.shards).index(group[0])])
        assert set(epoch[start:end]) == set(group.tolist())
        if len(group) == 2:
            assert all(set(epoch[i : i + 8]) == set(group.tolist()) for i in range(start, end - 7))
        start = end
    assert start == 40


def test_the_shards_of_the_next_group_are_fetched_ahead(folder, monkeypatch):
    """Whatever a batch reads was asked for by an earlier one, but for the first group."""
    asked, known = [], set()
    data = opened(folder, interleave=2)
    monkeypatch.setattr(data.pairs.shards, "prefetch", lambda shards: asked.append(set(shards)))
    first = set(shuffled(40, SHARD, 3, 0, 2).shards[:2].tolist())
    stream = data.train_dataloader()
    for batch in chain(iter(stream), iter(stream)):  # two epochs
        read = {i // SHARD for i in numbers(batch)}
        assert read <= known | first and not read & asked[-1]
        known |= asked[-1]


def test_interleave_is_at_least_one(folder):
    with pytest.raises(UserError, match="interleave: 0 must be at least 1"):
        opened(folder, interleave=0)


@pytest.mark.parametrize("interleave", [1, 3])
@pytest.mark.parametrize(("stop", "workers"), [(1, 0), (3, 0), (5, 0), (7, 0), (10, 0), (3, 2), (5, 2)])
def test_a_resumed_stream_continues_where_it_stopped(folder, stop, workers, interleave):
    unbroken = flat(stretches(opened(folder, interleave=interleave).train_dataloader(), 3))
    stream, seen = opened(folder, workers=workers, interleave=interleave).train_dataloader(), []
    while len(seen) < stop:
        for batch in stream:
            seen.append(numbers(batch))
            if len(seen) == stop:
                break
    assert stream.state_dict() == {"position": stop * BATCH}
    resumed = opened(folder, workers=workers, interleave=interleave).train_dataloader()
    resumed.load_state_dict(stream.state_dict())
    rest = [numbers(batch) for batch in resumed]
    assert seen + rest == unbroken[: len(seen) + len(rest)]
    assert (len(seen) + len(rest)) % len(resumed) == 0  # to the end of Lightning's epoch


@pytest.mark.parametrize(("world_size", "interleave"), [(2, 1), (4, 1), (2, 3)])
def test_the_global_batches_are_the_same_on_any_number_of_processes(folder, world_size, interleave):
    alone = flat(stretches(opened(folder, interleave=interleave).train_dataloader(), 2))
    ranks = [opened(folder, Place(rank, world_size), interleave=interleave) for rank in range(world_size)]
    shares = [flat(stretches(data.train_dataloader(), 2)) for data in ranks]
    assert all(len(batch) == BATCH // world_size for share in shares for batch in share)
    together = [sorted(flat(parts)) for parts in zip(*shares, strict=True)]
    assert together == [sorted(batch) for batch in alone]
    held_out = [i for data in ranks for batch in data.val_dataloader() for i in numbers(batch)]
    assert sorted(held_out) == list(range(PAIRS - HELD_OUT, PAIRS))


def test_a_run_resumes_on_another_number_of_processes(folder):
    first = opened(folder, Place(1, 2)).train_dataloader()
    next(iter(first))
    second = opened(folder).train_dataloader()
    second.load_state_dict(first.state_dict())
    unbroken = stretches(opened(folder).train_dataloader(), 1)[0]
    assert [numbers(batch) for batch in second] == unbroken[1:]


@pytest.mark.parametrize("workers", [0, 2])
def test_reading_leaves_the_global_generator_unchanged(folder, workers):
    state = torch.get_rng_state()
    stretches(opened(folder, workers=workers).train_dataloader(), 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_refuses_sizes_that_cannot_be_split(folder):
    with pytest.raises(UserError, match="batch_size: 8 pairs do not divide among 3 processes"):
        opened(folder, Place(0, 3))
    with pytest.raises(UserError, match="validation_pairs: 40 of the 47 pairs"):
        opened(folder, validation_pairs=40)
    assert len(opened(folder, validation_pairs=0).val_dataloader()) == 0


class Recorder(pl.LightningModule):
    """A module that learns nothing and records the pairs of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.automatic_optimization = False
        self.seen: list[list[int]] = []

    def training_step(self, batch, _) -> None:
        self.seen.append(numbers(batch))
        self.optimizers().step()

    def validation_step(self, batch, _) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, root, steps, workers, resume=None):
    module = Recorder()
    keep = pl.callbacks.ModelCheckpoint(dirpath=root, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = pl.Trainer(default_root_dir=root, callbacks=[keep], max_steps=steps, max_epochs=-1, **quiet)
    trainer.fit(module, LatentPairs(folder, BATCH, HELD_OUT, seed=3, workers=workers), ckpt_path=resume)
    return module.seen


@pytest.mark.parametrize(("workers", "steps"), [(0, (2, 5, 6, 10)), (1, (3, 5))])  # within an epoch, and at its end
def test_lightning_resumes_with_the_next_pairs(folder, tmp_path, workers, steps):
    unbroken = fit(folder, tmp_path, 12, workers)
    assert unbroken == flat(stretches(opened(folder).train_dataloader(), 3))[:12]
    for step in steps:
        resumed = fit(folder, tmp_path / "again", 12, workers, resume=tmp_path / f"step={step}.ckpt")
        assert resumed == unbroken[step:]


def test_memory_is_pinned_where_a_gpu_trains(folder):
    for device, pinned in (("cuda:0", True), ("cpu", False)):
        data = opened(folder, Place(strategy=SingleDeviceStrategy(torch.device(device))))
        assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == pinned
