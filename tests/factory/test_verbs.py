"""`diffgan pairs status, verify, plan`."""

import json
import os
import re
import shutil
import time

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from diffgan.__main__ import main
from diffgan.factory.claims import Claim, claim_file
from diffgan.factory.flops import Network
from diffgan.pairs import tensors_digest
from diffgan.store import open_store
from diffgan.workers import Worker
from tests.pair_sets import refusal, shards


def shown(capsys, *words) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_group_and_its_verbs_explain_themselves(capsys):
    for words, said in {("pairs", "--help"): "how far a set is", ("pairs", "plan", "--help"): "-c CONFIG"}.items():
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 0 and said in capsys.readouterr().out
    for words in ([], ["sweep"]):
        with pytest.raises(SystemExit) as exit:
            main(["pairs", *words])
        assert exit.value.code == 2


# ---- status ----


def test_status_of_a_set_half_done(whole, capsys):
    now = time.time()
    for shard, name in enumerate(shards(whole)):
        os.utime(whole / name, (now - 100 + shard,) * 2)
    os.utime(whole / "manifest.json", (now - 200,) * 2)
    for name in shards(whole)[4:]:
        (whole / name).unlink()
    open_store(whole).write(claim_file(5), Claim(Worker("node7", "elsewhere", 12, "1"), now - 60, now - 60).content())
    told = shown(capsys, "pairs", "status", whole)
    assert "44 pairs in 6 shards of 8" in told and "32 pairs (72.7%): 4 shards" in told and "12 pairs\n" in told
    assert re.search(r"shard 5 by node7, process 12, since 6\d\S* seconds, last sign \S+ seconds ago", told)
    rate = float(re.search(r"([\d.]+) pairs/s over the last", told)[1])
    assert rate == pytest.approx(32 / 200, rel=0.05)
    assert re.search(r"7\d seconds at that rate", told)
    size = sum((whole / name).stat().st_size for name in shards(whole))
    assert f"{size / 1000:.3g} kB now, {size / 32 * 44 / 1000:.3g} kB in the end" in told


def test_status_of_an_interrupted_set(whole, capsys):
    (whole / shards(whole)[0]).unlink()
    for file in whole.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    told = shown(capsys, "pairs", "status", whole)
    assert "of work, which ended 2 hours ago" in told and "nobody is at work" in told


def test_status_needs_a_set(tmp_path, capsys):
    assert "manifest.json: no pair set" in refusal(capsys, ["pairs", "status", str(tmp_path)])


# ---- verify ----


def test_verify_finds_nothing_in_a_set_that_is_right(unbroken, capsys):
    told = shown(capsys, "pairs", "verify", unbroken, "--sample", 10)
    assert "6 shards, 44 pairs: headers, seeds, prompts, values, digests are right" in told
    deviation, largest, allowed = map(
        float, re.search(r"most (\S+) of latents up to (\S+), allowed (\S+)", told).groups()
    )
    assert 0 < deviation <= 2**-11 * largest + 1e-4 < allowed


def rewritten(file, change, keep_digest=True):
    """Change the tensors of a shard; its header may tell the new digest."""
    with safe_open(file, framework="pt") as archive:
        header = json.loads(archive.metadata()["diffgan"])
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    if not keep_digest:
        header["digest"] = tensors_digest(tensors)
    save_file(tensors, file, {"diffgan": json.dumps(header)})


def flip(tensors):
    tensors["latent"][1, 0, 0, 0] += 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        (flip, "its bytes are not those that were written"),
        (lambda tensors: tensors["latent"][0].fill_(float("nan")), "latent is not finite"),
        (lambda tensors: tensors["seed"].add_(1), "seeds of other pairs"),
        (lambda tensors: tensors["prompt_offsets"][-1:].add_(1), "prompt_offsets do not cut"),
        (lambda tensors: tensors.pop("noise_head"), "noise_head"),
    ],
)
def test_verify_names_the_shard_and_the_fault(whole, change, message, capsys):
    file = whole / shards(whole)[2]
    rewritten(file, change)
    line = refusal(capsys, ["pairs", "verify", str(whole), "--sample", "0"])
    assert str(file) in line and message in line


def test_verify_makes_pairs_again(whole, capsys):
    file = whole / shards(whole)[2]
    rewritten(file, flip, keep_digest=False)
    line = refusal(capsys, ["pairs", "verify", str(whole)])
    assert f"{file}: made again, seed 27 deviates by 0.5" in line


def test_verify_sees_other_noise(whole, capsys):
    file = whole / shards(whole)[3]
    rewritten(file, lambda tensors: tensors["noise_head"][2].add_(1), keep_digest=False)
    assert f"{file}: seed 36 draws other noise" in refusal(capsys, ["pairs", "verify", str(whole)])


def test_verify_wants_the_whole_set_and_its_teacher(whole, other_pipeline, capsys, tiny_pipeline, tmp_path):
    assert "not the teacher of this set" in refusal(
        capsys, ["pairs", "verify", str(whole), "--teacher", str(other_pipeline)]
    )
    moved = shutil.copytree(tiny_pipeline, tmp_path / "moved")
    assert "44 pairs made again" in shown(capsys, "pairs", "verify", whole, "--teacher", moved)
    (whole / shards(whole)[3]).unlink()
    assert "pairs-00003-of-00006.safetensors: shard is missing" in refusal(capsys, ["pairs", "verify", str(whole)])


# ---- plan ----


def test_plan_tells_what_it_knows_and_makes_nothing(command, tmp_path, capsys):
    words = ["pairs", "plan", *command(tmp_path / "set")[1:]]
    told = shown(capsys, *words)
    assert "44 in 6 shards of 8" in told and "4 a pair, 176 in all" in told and "hours" in told and "unknown" in told
    told = shown(capsys, *words, "--calls_per_second", 8, "--devices", 2)
    assert "4 pairs/s on 2 device(s): 8.0 calls/s a device, as given" in told and "0.00306 (11 seconds)" in told
    told = shown(capsys, *words, "--measure")
    assert re.search(r"pairs/s on 1 device\(s\): 3 pairs took \S+ s on (cpu|cuda)", told)
    assert not (tmp_path / "set").exists()


def test_the_disk_that_plan_tells_is_what_it_takes(command, unbroken, capsys):
    told = shown(capsys, "pairs", "plan", *command(unbroken)[1:])
    planned = float(re.search(r"disk +([\d.]+) kB", told)[1]) * 1000
    data = sum(tensor.nbytes for name in shards(unbroken) for tensor in load_file(unbroken / name).values())
    assert planned == pytest.approx(data, rel=0.01)


def test_plan_counts_the_operations_of_stable_diffusion(tmp_path):
    """0.80 TFLOPs a call at 64x64: 401.5 G multiplications and additions, as others count."""
    with torch.device("meta"):
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768).save_config(tmp_path / "unet")
    CLIPTextConfig(max_position_embeddings=77).save_pretrained(tmp_path / "text_encoder")
    DDIMScheduler().save_config(tmp_path / "scheduler")
    network = Network(str(tmp_path))
    assert network.flops() == pytest.approx(0.803e12, rel=0.01)
    assert network.embedding_bytes() == 77 * 768 * 2 and network.calls(50, "HeunDiscreteScheduler") == 99


@pytest.mark.parametrize(
    "options, message",
    [
        (["--measure", "--calls_per_second", "3"], "give one of"),
        (["--peak_tflops", "3"], "--peak_tflops and --utilization go together"),
    ],
)
def test_plan_wants_one_source(options, message, command, tmp_path, capsys):
    assert message in refusal(capsys, ["pairs", "plan", *command(tmp_path / "set")[1:], *options])
