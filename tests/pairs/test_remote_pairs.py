"""Training on a pair set behind a URL equals training on the local one."""

import copy
import shutil
import time
from pathlib import Path

import pytest
import torch

from datamodules.latent_pairs import LatentPairs
from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.pairs import shard_reader as shards
from diffgan.pairs.pair_set import PairSet
from diffgan.storage import cache
from diffgan.storage.open import open_store
from tests.runs import checkpoint, named, refused, write

SHARD = "pairs-00001-of-00003.safetensors"


def upload(folder: Path, url: str) -> str:
    store = open_store(url)
    for name in open_store(folder).entries():
        store.write(name, (folder / name).read_bytes())
    return url


@pytest.fixture
def remote(pairs, tmp_path) -> str:
    """A copy of `pairs` behind a URL; all code but the requests themselves is that of S3."""
    return upload(pairs, f"memory://{tmp_path}/remote")


@pytest.fixture
def on_s3(pairs, s3) -> str:
    """A copy of `pairs` on an S3 server."""
    return upload(pairs, s3)


def same(a, b) -> bool:
    return a.prompt == b.prompt and all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("seed", "noise", "latent"))


def batches(folder: str | Path, count: int = 9, **settings) -> list:
    """The first training batches, and the held-out ones."""
    data = LatentPairs(folder, 8, 8, seed=3, **settings)
    data.setup("fit")
    stream = data.train_dataloader()
    training = []
    while len(training) < count:
        training += list(stream)
    return training[:count] + list(data.val_dataloader())


@pytest.mark.parametrize("place", ["memory", "s3"])
@pytest.mark.parametrize("workers", [0, 2])
def test_remote_pairs_are_the_local_ones(pairs, request, tmp_path, place, workers):
    url = request.getfixturevalue("s3") if place == "s3" else f"memory://{tmp_path}/set"
    pair_set = PairSet(upload(pairs, url))
    assert same(
        pair_set.read(range(40)), PairSet(pairs).read(range(40))
    )  # workers must not use this process's connection
    wanted = batches(pairs)
    assert all(same(*both) for both in zip(batches(url, workers=workers), wanted, strict=True))


def test_a_cache_smaller_than_the_set_suffices(pairs, remote, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGAN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "MAX_OPEN_REMOTE", 1)
    size = (pairs / SHARD).stat().st_size
    read = batches(remote, count=15, cache_gb=1.5 * size / 1e9, workers=2)
    assert all(same(*both) for both in zip(read, batches(pairs, count=15), strict=True))
    kept = [file for file in cache.cache_folder().iterdir() if file.suffix == ".safetensors"]
    assert len(kept) == 1


def test_a_damaged_copy_is_fetched_again(pairs, remote):
    PairSet(remote).read(range(40))
    copy_of_shard = open_store(remote).local(SHARD)
    content = copy_of_shard.read_bytes()
    for damage in (content[:100], b"\xff" * 20 + content[20:]):  # its size; its header
        copy_of_shard.write_bytes(damage)
        assert same(PairSet(remote).read(range(40)), PairSet(pairs).read(range(40)))
        assert open_store(remote).local(SHARD).read_bytes() == content


def test_missing_and_damaged_remote_shards_are_named(pairs, remote):
    store, content = open_store(remote), (pairs / SHARD).read_bytes()
    for damage, message in {
        content[:1000]: "shard is damaged .*; delete it and run",
        (pairs / SHARD.replace("00001-", "00000-")).read_bytes(): "shard is damaged .seeds of other pairs",
    }.items():
        store.write(SHARD, damage)
        assert same(PairSet(remote).read(range(16)), PairSet(pairs).read(range(16)))
        with pytest.raises(UserError, match=f"^{remote}/{SHARD}: {message}"):
            PairSet(remote).read([16])
    pair_set = PairSet(remote)
    store.remove(SHARD)
    with pytest.raises(UserError, match=f"^{remote}/{SHARD}: shard is missing; run"):
        pair_set.read([16])
    with pytest.raises(UserError, match=f"^{remote}/{SHARD}: shard is missing; run"):
        PairSet(remote)
    store.remove(SHARD.replace("00001-", "00000-"))
    with pytest.raises(UserError, match=r"00000-of-00003\.safetensors: shard is missing, and 1 other; run"):
        PairSet(remote)
    with pytest.raises(UserError, match=r"elsewhere/manifest\.json: no pair set"):
        PairSet(f"{remote}/elsewhere")


def test_shards_are_fetched_before_they_are_needed(on_s3, gate, tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFGAN_CACHE", str(tmp_path / "cache"))
    data = LatentPairs(on_s3, 8, 0, seed=3)
    data.setup("fit")
    first = next(iter(data.train_dataloader()))
    assert len(set((first.seed // 16).tolist())) == 1
    wanted = {f"GET /{on_s3[5:]}/{data.pairs.manifest.name(shard)}" for shard in range(3)}
    end = time.monotonic() + 20
    while wanted - set(gate.requests) and time.monotonic() < end:
        time.sleep(0.05)
    assert wanted <= set(gate.requests)  # all three shards, though only one was read


def test_half_written_files_are_ignored(pairs, tmp_path):
    folder = Path(shutil.copytree(pairs, tmp_path / "set"))
    (folder / f"{SHARD}.1.0-1-1.partial").write_bytes(b"half")
    assert same(PairSet(folder).read(range(40)), PairSet(pairs).read(range(40)))


def test_training_resumed_on_a_remote_set_equals_the_uninterrupted_local_run(config, on_s3, tmp_path):
    main(["fit", "-c", write(tmp_path / "local.yaml", config)])
    short = named(config, "remote")
    short["data"]["init_args"]["folder"] = on_s3
    rest = copy.deepcopy(short)
    short["model"]["init_args"]["images"] = 24
    for settings in (short, rest):
        main(["fit", "-c", write(tmp_path / "remote.yaml", settings)])
    local, resumed = (checkpoint(tmp_path / name)["state_dict"] for name in ("run", "remote"))
    assert all(torch.equal(local[name], resumed[name]) for name in local)


def test_a_damaged_remote_shard_ends_training_with_one_line(config, remote, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFGAN_CACHE", str(tmp_path / "cache"))
    config["data"]["init_args"] |= {"folder": remote, "workers": 1}
    open_store(remote).write(SHARD, b"")
    error = refused(capsys, "fit", "-c", write(tmp_path / "c.yaml", config)).splitlines()[-1]
    assert error.startswith(f"diffgan: error: {remote}/{SHARD}: shard is damaged")
