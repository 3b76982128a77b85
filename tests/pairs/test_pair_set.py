"""Pair sets as written and read, and what a reader refuses."""

import dataclasses
import json
import os
import pickle

import pytest
import torch

from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs import pair_set as pairs_module
from diffgan.pairs.batch import PairBatch
from diffgan.pairs.manifest import Manifest, versions
from diffgan.pairs.pair_set import PairSet
from diffgan.pairs.shard_format import read_shard
from diffgan.storage.open import open_store
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from tests.pair_sets import write_shard

SHAPE = (4, 8, 8)
PROMPTS = ["capital A", "grüße ☃", "digit 7"]


def manifest(**changes) -> Manifest:
    values = dict(
        teacher="somewhere",
        teacher_digest="00",
        scheduler={"prediction_type": "v_prediction"},
        steps=4,
        guidance=3.0,
        timestep_spacing="trailing",
        precision="32-true",
        latent_space={"channels": 4, "scale": 0.18215},
        latent_shape=list(SHAPE),
        prompts_digest="11",
        seed_base=100,
        pairs=7,
        shard_size=3,
        store_noise=False,
        batch_size=2,
        versions=versions(),
    )
    return Manifest(**{**values, **changes})


def some_pairs(numbers, seed_base=100) -> PairBatch:
    seeds = torch.tensor([seed_base + i for i in numbers])
    latent = torch.stack([torch.full(SHAPE, i / 8) for i in numbers])  # exact in float16
    return PairBatch(seeds, draw_noise(seeds, SHAPE), [PROMPTS[i % 3] for i in numbers], latent)


@pytest.fixture
def folder(tmp_path):
    write_set(tmp_path, manifest())
    return tmp_path


def write_set(folder, written):
    written.write(folder)
    for shard in range(written.shards):
        write_shard(folder, written, shard, some_pairs(written.span(shard)))


@pytest.mark.parametrize("store_noise", [False, True])
def test_pairs_are_read_in_any_order(tmp_path, store_noise):
    write_set(tmp_path, manifest(store_noise=store_noise))
    numbers = [6, 0, 4, 4, 2]
    read, wanted = PairSet(tmp_path).read(numbers), some_pairs(numbers)
    assert read.prompt == wanted.prompt
    for name in ("seed", "noise", "latent"):
        assert torch.equal(getattr(read, name), getattr(wanted, name))
        assert getattr(read, name).dtype == getattr(wanted, name).dtype
    assert len(PairSet(tmp_path)) == 7


def test_shards_are_the_same_bytes_every_time(folder, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    write_set(again, manifest(batch_size=5, teacher="elsewhere"))
    for file in folder.glob("*.safetensors"):
        assert file.read_bytes() == (again / file.name).read_bytes()


def test_the_first_field_that_differs_is_named_and_versions_are_not_compared(folder):
    stored = Manifest.read(open_store(folder))
    assert stored == manifest()
    manifest(versions={}, teacher="moved", batch_size=9, compile=True).require_same(stored.identity(), folder)
    with pytest.raises(UserError, match=r"guidance is 3\.0 there and 8\.0 here"):
        manifest(guidance=8.0, pairs=9).require_same(stored.identity(), folder)


@pytest.mark.parametrize("size", [0, 4, 700, -1])
def test_refuses_a_truncated_shard(folder, size):
    file = manifest().file(folder, 1)
    os.truncate(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(UserError, match=f"{file.name}: shard is damaged .* delete it"):
        PairSet(folder)


def test_refuses_flipped_bytes_of_a_small_set(folder, monkeypatch):
    file = manifest().file(folder, 1)
    content = file.read_bytes()
    file.write_bytes(content.replace("grüße".encode(), "grüßE".encode()))
    with pytest.raises(UserError, match=f"{file.name}: shard is damaged .its bytes do not match"):
        PairSet(folder)
    monkeypatch.setattr(pairs_module, "COMPARED_BYTES", 1000)
    PairSet(folder)


def test_noise_that_is_not_a_number_is_refused(folder, monkeypatch):
    monkeypatch.setattr(pairs_module, "draw_noise", lambda seeds, shape: draw_noise(seeds, shape) * float("nan"))
    with pytest.raises(UserError, match="seed 102 draws other noise"):
        PairSet(folder).read([2])


def test_refuses_a_missing_shard(folder):
    file = manifest().file(folder, 2)
    file.unlink()
    with pytest.raises(UserError, match=f"{file.name}: shard is missing"):
        PairSet(folder)


def test_refuses_a_shard_of_another_set_or_place(folder):
    original, file = manifest(), manifest().file(folder, 1)
    write_shard(folder, dataclasses.replace(original, steps=5), 1, some_pairs(original.span(1)))
    with pytest.raises(UserError, match=f"{file.name}: another pair set: steps is 5 there and 4 here"):
        PairSet(folder)
    file.write_bytes(original.file(folder, 0).read_bytes())
    with pytest.raises(UserError, match=rf"{file.name}: shard is damaged \(seeds of other pairs"):
        PairSet(folder)


@pytest.mark.parametrize("content", ["", "[1]", "{}", '{"pairs": 3}'])
def test_refuses_a_file_that_is_not_a_manifest(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json"):
        PairSet(folder)


def test_refuses_a_folder_without_a_set(tmp_path):
    with pytest.raises(UserError, match=r"manifest\.json: no pair set"):
        PairSet(tmp_path)


def test_detects_a_generator_that_draws_other_noise(folder, monkeypatch):
    monkeypatch.setattr(pairs_module, "draw_noise", lambda seeds, shape: draw_noise(seeds + 1, shape))
    with pytest.raises(UserError, match="seed 102 draws other noise"):
        PairSet(folder).read([2])


def test_stored_noise_needs_no_generator(tmp_path, monkeypatch):
    write_set(tmp_path, manifest(store_noise=True))
    monkeypatch.delattr(pairs_module, "draw_noise")
    assert torch.equal(PairSet(tmp_path).read([5]).noise, some_pairs([5]).noise)


def test_refuses_latents_that_float16_cannot_hold(tmp_path):
    batch = some_pairs(range(3))
    batch.latent[1, 0, 0, 0] = 1e6
    with pytest.raises(UserError, match="seed 101 is not finite"):
        write_shard(tmp_path, manifest(), 0, batch)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_behind(folder, monkeypatch):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"pairs-00000-of-00003\.safetensors: cannot be written: No space left"):
        write_shard(folder, manifest(), 0, some_pairs(range(3)))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_shards_are_memory_mapped(folder):
    tensors = read_shard(open_store(folder), manifest(), 0).tensors
    with open("/proc/self/maps") as maps:
        assert manifest().file(folder, 0).name in maps.read()
    assert tensors["latent"].dtype == torch.float16


def test_digest_follows_the_weights_and_not_the_place(tiny_pipeline, other_pipeline, tmp_path):
    (tmp_path / "link").symlink_to(tiny_pipeline)
    digest = weights_digest(load_teacher(str(tiny_pipeline)))
    assert weights_digest(load_teacher(str(tmp_path / "link"))) == digest
    assert weights_digest(load_teacher(str(other_pipeline))) != digest


def test_a_manifest_from_before_networks_were_compiled_is_read(folder):
    values = json.loads((folder / "manifest.json").read_text())
    del values["compile"]
    (folder / "manifest.json").write_text(json.dumps(values))
    assert Manifest.read(open_store(folder)) == manifest()


def test_manifest_is_plain_json(folder):
    assert json.loads((folder / "manifest.json").read_text())["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_copy_in_another_process_reads_the_same(pairs):
    """Workers of a data loader get the set by pickling where processes are not forked (Python 3.14)."""
    pair_set = PairSet(pairs)
    before = pair_set.read([0, 9])
    pair_set.shards.prefetch([1])
    after = pickle.loads(pickle.dumps(pair_set)).read([0, 9])
    assert before.prompt == after.prompt and torch.equal(before.latent, after.latent)
