"""Cached text conditioning: made by the command, read by training."""

import dataclasses
import json
import os

import pytest
import torch
from safetensors.torch import load, save

from datamodules.latent_pairs import LatentPairs
from diffgan.__main__ import main
from diffgan.cli.pairs.embed import embed
from diffgan.errors import UserError
from diffgan.pairs.embeddings import Embeddings, index_tensors, prompt_keys, shard_header
from diffgan.pairs.headers import HEADER
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.open import open_store
from diffgan.teachers.digest import weights_digest
from diffgan.teachers.registry import load_teacher
from tests.pair_sets import write_shard
from tests.pipelines import saved, sdxl
from tests.runs import checkpoint, named, refused, write

TOLERANCE = 1e-6  # a text encoder's rounding depends on what it encodes together


@pytest.fixture(scope="module")
def embeddings(pairs, tmp_path_factory):
    """Made by the command; tests must not change it."""
    folder = tmp_path_factory.mktemp("embeddings")
    main(["pairs", "embed", str(pairs), str(folder)])
    return folder


def test_every_unique_prompt_has_a_row_that_equals_encoding(pairs, embeddings, tiny_pipeline):
    teacher, pair_set = load_teacher(str(tiny_pipeline)), PairSet(pairs)
    pair_set.embeddings = Embeddings(embeddings, pair_set.manifest.teacher_digest)
    assert len(pair_set.embeddings.keys) == len(set(pair_set.prompts(range(40)))) == 2
    batch = pair_set.read([39, 0, 17, 17, 2])
    wanted = teacher.encode(batch.prompt)
    assert (batch.conditioning.text - wanted.text).abs().max() <= TOLERANCE
    assert batch.conditioning.text.dtype == wanted.text.dtype and batch.conditioning.pooled is None
    assert pair_set.read([0]).prompt != pair_set.read([1]).prompt
    assert not torch.equal(pair_set.read([0]).conditioning.text, pair_set.read([1]).conditioning.text)


def test_all_conditioning_of_sdxl_is_cached(pairs, tmp_path):
    pipeline = saved(sdxl, tmp_path / "xl")
    teacher, plain = load_teacher(str(pipeline)), PairSet(pairs)
    changes = {"teacher": str(pipeline), "teacher_digest": weights_digest(teacher)}
    manifest = dataclasses.replace(plain.manifest, **changes)
    manifest.write(tmp_path / "set")
    for shard in range(manifest.shards):
        write_shard(tmp_path / "set", manifest, shard, plain.read(manifest.span(shard)))
    embed(str(tmp_path / "set"), str(tmp_path / "embeddings"))
    read = Embeddings(tmp_path / "embeddings", manifest.teacher_digest).read(["digit 7", "digit 7"])
    wanted = teacher.encode(["digit 7", "digit 7"])
    assert [tensor is None for tensor in read] == [tensor is None for tensor in wanted]
    for cached, encoded in zip(read[:3], wanted[:3], strict=True):  # text, pooled, sizes
        assert cached.dtype == encoded.dtype and (cached - encoded).abs().max() <= TOLERANCE


def test_the_same_command_resumes_and_others_are_refused(pairs, embeddings, other_pipeline, tmp_path):
    folder = tmp_path / "again"
    embed(str(pairs), str(folder), batch_size=1)
    file = next(folder.glob("embeddings-*"))
    before = file.stat().st_mtime_ns
    embed(str(pairs), str(folder))
    assert file.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"not the teacher of this set .* --teacher"):
        embed(str(pairs), str(folder), teacher=str(other_pipeline))
    (folder / "index.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"index\.safetensors: embeddings of other prompts"):
        embed(str(pairs), str(folder))


def other_order(pairs, folder):
    """A set with the same two prompts in the other order."""
    pair_set = PairSet(pairs)
    one, two = dict.fromkeys(pair_set.prompts(range(len(pair_set))))
    pair_set.manifest.write(folder)
    for shard in range(pair_set.manifest.shards):
        batch = pair_set.read(pair_set.manifest.span(shard))
        swapped = [two if prompt == one else one for prompt in batch.prompt]
        write_shard(folder, pair_set.manifest, shard, batch._replace(prompt=swapped))
    return folder


def test_shards_of_other_prompts_are_made_again(pairs, embeddings, tmp_path, capsys):
    folder, digest = tmp_path / "again", PairSet(pairs).manifest.teacher_digest
    embed(str(pairs), str(folder))
    (folder / "index.safetensors").unlink()
    embed(str(other_order(pairs, tmp_path / "set")), str(folder))
    assert (
        "embeddings-00000-of-00001.safetensors: belongs to other prompts or another teacher" in capsys.readouterr().err
    )
    for prompt in dict.fromkeys(PairSet(pairs).prompts(range(40))):
        read, wanted = (Embeddings(place, digest).read([prompt]).text for place in (folder, embeddings))
        assert (read - wanted).abs().max() <= TOLERANCE


def test_damaged_shards_are_made_again(pairs, tmp_path, capsys):
    embed(str(pairs), str(tmp_path))
    file = next(tmp_path.glob("embeddings-*"))
    intact = file.read_bytes()
    for broken in (b"", intact[:100], intact[:-1]):
        file.write_bytes(broken)
        embed(str(pairs), str(tmp_path))
        assert file.read_bytes() == intact and "shard is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["prompts", "teacher", "shard"])
def test_shards_of_other_prompts_or_another_teacher_are_not_read(pairs, tmp_path, change):
    embed(str(pairs), str(tmp_path))
    file, pair_set = next(tmp_path.glob("embeddings-*")), PairSet(pairs)
    prompts = dict.fromkeys(pair_set.prompts(range(40)))
    values = {"shard": 0, "teacher": pair_set.manifest.teacher_digest, "prompts": list(prompts)}
    values[change] = {"prompts": list(prompts)[::-1], "teacher": "00", "shard": 1}[change]
    header = shard_header(values["shard"], values["teacher"], prompt_keys(values["prompts"]))
    file.write_bytes(save(load(file.read_bytes()), {HEADER: json.dumps(header)}))
    with pytest.raises(UserError, match="belongs to other prompts or another teacher; run `diffgan pairs embed` again"):
        Embeddings(tmp_path, pair_set.manifest.teacher_digest).read(["digit 7"])


def test_embeddings_that_do_not_match_the_pairs_are_refused(pairs, embeddings, tmp_path):
    data = LatentPairs(pairs, 8, 8, embeddings=tmp_path)
    with pytest.raises(UserError, match=r"index\.safetensors: shard is missing; run `diffgan pairs embed`"):
        data.setup("fit")
    with pytest.raises(UserError, match=r"embeddings are of another teacher .digest .* there, 00 of the pairs"):
        Embeddings(embeddings, "00")
    cached = Embeddings(embeddings, PairSet(pairs).manifest.teacher_digest)
    with pytest.raises(UserError, match="no embedding of the prompt 'digit 8'; run `diffgan pairs embed`"):
        cached.read(["digit 7", "digit 8"])


def test_training_with_embeddings_equals_training_without(config, embeddings, tmp_path):
    other = named(config, "read")
    other["data"]["init_args"]["embeddings"] = str(embeddings)
    for name, settings in {"run": config, "read": other}.items():
        main(["fit", "-c", write(tmp_path / f"{name}.yaml", settings)])
    made, read = (checkpoint(tmp_path / name)["state_dict"] for name in ("run", "read"))
    assert made.keys() == read.keys()
    assert max((made[name].float() - read[name].float()).abs().max() for name in made) < 1e-4


def test_a_damaged_shard_ends_the_training_with_one_line(config, pairs, tmp_path, capsys):
    embed(str(pairs), str(tmp_path / "embeddings"))
    os.truncate(next((tmp_path / "embeddings").glob("embeddings-*")), 100)
    config["data"]["init_args"] |= {"embeddings": str(tmp_path / "embeddings"), "workers": 1}
    error = refused(capsys, "fit", "-c", write(tmp_path / "c.yaml", config)).splitlines()[-1]
    assert error.startswith("diffgan: error: ") and "embeddings-00000-of-00001.safetensors: shard is damaged" in error


def test_embeddings_in_an_object_store(pairs, s3, embeddings):
    embed(str(pairs), s3)
    read = Embeddings(s3, PairSet(pairs).manifest.teacher_digest).read(["digit 7"])
    assert torch.equal(read.text, Embeddings(embeddings, PairSet(pairs).manifest.teacher_digest).read(["digit 7"]).text)
    assert list(open_store(s3).entries()) == ["embeddings-00000-of-00001.safetensors", "index.safetensors"]


def test_the_index_finds_every_prompt():
    prompts = [f"prompt {i}" for i in range(1000)]
    index = index_tensors(prompts)
    assert sorted(index["row"].tolist()) == list(range(1000)) and (index["key"].diff() > 0).all()
