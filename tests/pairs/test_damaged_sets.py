"""Pair sets that come from elsewhere: every field and tensor is checked before anything is made, by one line."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.pairs.embeddings import INDEX, Embeddings
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.open import open_store
from diffgan.storage.tensor_files import tensors_digest
from tests.pair_sets import contents, refusal, shards, writer_settings

DEEP = "[" * 100_000 + "]" * 100_000


# ---- manifests ----


def change_manifest(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pairs": 10**12}, "pairs is 1000000000000 there and must be an integer of at least 1 and at most 1000000000"),
        ({"pairs": 10**9, "shard_size": 1}, "1000000000 pairs in shards of 1 are more than 1000000 shards"),
        ({"shard_size": 0}, "shard_size is 0"),
        ({"latent_shape": [10**5] * 3}, "product is at most 16777216"),
        ({"scheduler": {"betas": [0.1, float("nan")]}}, "must be an object without NaN"),
        ({"guidance_kind": "zz"}, "guidance_kind is 'zz' there and must be one of cfg, embedded, none"),
        ({"guidance": float("nan")}, "guidance is nan there and must be a finite number"),
        ({"seed_base": 2**33}, "seed_base is 8589934592"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"latent_space": {"scale": "1"}}, "must be an object of numbers (mean and std: lists of numbers)"),
        ({"latent_space": {"factor": [8]}}, "must be an object of numbers"),
        ({"latent_space": {"mean": 1.0}}, "must be an object of numbers"),
        ({"versions": {"torch": None}}, "must be an object of strings"),
        ({"teacher": ["glyphs"]}, "teacher is ['glyphs'] there and must be a string"),
    ],
)
@pytest.mark.parametrize("verb", ["status", "verify"])
def test_a_field_out_of_range_is_named(verb, changes, message, complete_set, capsys):
    change_manifest(complete_set, **changes)
    before, started = contents(complete_set), time.monotonic()
    assert message in refusal(capsys, ["pairs", verb, str(complete_set)])
    assert contents(complete_set) == before and time.monotonic() - started < 5


@pytest.mark.parametrize(
    "content, message",
    [
        (DEEP, "nested too deeply"),
        ("[]", "no JSON object"),
        ("{" + " " * 2_000_000 + "}", "more than the 1048576 bytes"),
        ('{"teacher": "\\ud800"}', "surrogates"),
        (b"\xff\xfe\xfd", "decode"),
    ],
)
def test_a_manifest_that_is_no_json_object_is_refused(content, message, complete_set, capsys):
    file = complete_set / "manifest.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert message in refusal(capsys, ["pairs", "status", str(complete_set)])


def test_a_set_of_too_many_pairs_is_not_begun(command, tmp_path, capsys):
    line = refusal(capsys, command(tmp_path / "set", "--data.init_args.pairs=2000000000"))
    assert "pairs is 2000000000" in line and not (tmp_path / "set" / "manifest.json").exists()


def test_a_folder_without_a_name_is_refused(command, tmp_path, capsys):
    words = command(tmp_path / "set")
    config = yaml.safe_load(Path(words[-1]).read_text())
    writer_settings(config)["folder"] = ""
    Path(words[-1]).write_text(yaml.safe_dump(config))
    assert "folder: is empty; name a folder" in refusal(capsys, words)
    assert "names no folder" in refusal(capsys, ["pairs", "status", ""])


def test_files_named_after_pairs_outside_the_set_are_not_counted(complete_set, capsys):
    (complete_set / shards(complete_set)[5]).unlink()
    for name in ("parts/00005-0-999999999999.safetensors", "parts/00005-7-3.safetensors", "claims/99999999999"):
        (complete_set / name).parent.mkdir(exist_ok=True)
        (complete_set / name).write_text(DEEP)
    main(["pairs", "status", str(complete_set)])
    assert "40 pairs (90.9%): 5 shards and 0 pairs in partial shards" in capsys.readouterr().out


# ---- shards ----


def rewrite(file, change):
    """Change tensors and header of a shard; its digest matches its tensors."""
    with safe_open(file, framework="pt") as archive:
        header = json.loads(archive.metadata()["diffgan"])
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors, header)
    header["digest"] = tensors_digest(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"diffgan": json.dumps(header)})


def offset(row, value):
    return lambda tensors, header: tensors["prompt_offsets"].__setitem__(row, value)


def cast(name, dtype):
    return lambda tensors, header: tensors.update({name: tensors[name].to(dtype)})


def header_value(name, value):
    return lambda tensors, header: header.update({name: value})


BROKEN_SHARDS = [
    (offset(3, 10**15), "prompt_offsets do not match"),
    (offset(3, -7), "prompt_offsets do not match"),
    (cast("latent", torch.int32), "latent is int32 and not float16"),
    (cast("seed", torch.float64), "seed is float64 and not int64"),
    (lambda tensors, header: tensors.update(latent=tensors["latent"][:, :2]), "latent has shape (8, 2, 8, 8) and not"),
    (lambda tensors, header: tensors.pop("noise_head"), "noise_head is missing"),
    (lambda tensors, header: tensors.update(more=torch.zeros(1)), "more does not belong there"),
    (lambda tensors, header: tensors["prompt_bytes"].fill_(0xFF), "no UTF-8"),
    (header_value("truncated", "many"), "truncated is 'many'"),
    (header_value("batch_size", 0), "batch_size is 0"),
    (header_value("made", [{"device": 3}]), "made is no list"),
]


@pytest.mark.parametrize("change, message", BROKEN_SHARDS, ids=[message for _, message in BROKEN_SHARDS])
def test_training_and_verify_refuse_a_shard_alike(change, message, complete_set, capsys):
    file = complete_set / shards(complete_set)[2]
    rewrite(file, change)
    line = refusal(capsys, ["pairs", "verify", str(complete_set), "--sample", "0"])
    assert f"{file}: shard is damaged" in line and message in line
    with pytest.raises(UserError) as refused:
        PairSet(complete_set)
    assert str(refused.value) in line


def test_a_character_cut_by_an_offset_is_found(complete_set):
    file = complete_set / shards(complete_set)[0]
    text = load_file(file)["prompt_bytes"]
    second_byte = int(((text & 0b1100_0000) == 0b1000_0000).nonzero()[0])  # of "ü"

    def move(tensors, header):
        offsets = tensors["prompt_offsets"]
        row = int((offsets <= second_byte).nonzero()[-1]) or 1
        offsets[row] = second_byte

    rewrite(file, move)
    with pytest.raises(UserError, match="cut a character"):
        PairSet(complete_set)


def test_a_header_of_another_kind_is_refused(complete_set, capsys):
    file = complete_set / shards(complete_set)[1]
    for content in (DEEP, "[]", "3"):
        save_file({"latent": torch.zeros(1)}, file, {"diffgan": content})
        assert f"{file}: shard is damaged" in refusal(capsys, ["pairs", "verify", str(complete_set)])
        main(["pairs", "status", str(complete_set)])
        assert f"damaged   {file}" in capsys.readouterr().out


def test_a_partial_shard_of_another_shape_is_made_again(command, unbroken, tmp_path):
    folder = tmp_path / "set"
    main(command(folder))
    expected = contents(unbroken)
    file = folder / shards(folder)[5]
    part = folder / "parts" / "00005-40-42.safetensors"
    part.parent.mkdir(exist_ok=True)
    file.rename(part)  # four rows, where the name says three
    main(command(folder))
    assert {name: contents(folder)[name] for name in shards(folder)} == {
        name: expected[name] for name in shards(folder)
    }


# ---- the teacher that a manifest names ----


@pytest.mark.parametrize("verb", [["verify"], ["embed"]])
def test_a_hub_id_in_a_manifest_is_not_loaded_unasked(verb, complete_set, tmp_path, capsys):
    change_manifest(complete_set, teacher="someone/model")
    words = ["pairs", *verb, str(complete_set), *([str(tmp_path / "out")] if verb == ["embed"] else [])]
    assert "if you trust it, say --teacher someone/model" in refusal(capsys, words)
    assert not (tmp_path / "out").exists()


def test_the_teacher_is_named_before_it_is_loaded(complete_set, tmp_path, capsys):
    (tmp_path / "teacher").mkdir()
    change_manifest(complete_set, teacher=str(tmp_path / "teacher"))
    with pytest.raises(SystemExit):
        main(["pairs", "verify", str(complete_set)])
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"{complete_set}: teacher {tmp_path / 'teacher'}" and "model_index.json is missing" in second


# ---- embeddings ----


@pytest.fixture
def embedded_set(complete_set, tmp_path):
    main(["pairs", "embed", str(complete_set), str(tmp_path / "embeddings")])
    return complete_set, tmp_path / "embeddings"


BROKEN_EMBEDDINGS = [
    (INDEX, lambda tensors, header: header.update(shard_size=0), "shard_size is 0"),
    (INDEX, lambda tensors, header: tensors["row"].fill_(10**12), "no permutation"),
    (INDEX, lambda tensors, header: tensors.pop("key"), "key is missing"),
    (INDEX, lambda tensors, header: tensors.update(key=tensors["key"].flip(0)), "not ascending"),
    ("embeddings-0", lambda tensors, header: tensors.update(text=tensors["text"][:1]), "text has shape"),
    ("embeddings-0", lambda tensors, header: tensors.update(other=tensors.pop("text")), "text is missing"),
]


@pytest.mark.parametrize("name, change, message", BROKEN_EMBEDDINGS, ids=[row[-1] for row in BROKEN_EMBEDDINGS])
def test_damaged_embeddings_are_refused(name, change, message, embedded_set):
    pairs, folder = embedded_set
    (file,) = (file for file in folder.iterdir() if file.name.startswith(name))
    with safe_open(file, framework="pt") as archive:
        header = json.loads(archive.metadata()["diffgan"])
    tensors = load_file(file)
    change(tensors, header)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, {"diffgan": json.dumps(header)})
    with pytest.raises(UserError, match=message):
        Embeddings(folder, Manifest.read(open_store(pairs)).teacher_digest).read(PairSet(pairs).prompts([0]))
