"""`diffgan pairs status, verify, plan`."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig

from diffgan.__main__ import main
from diffgan.cli.pairs import verify
from diffgan.errors import UserError
from diffgan.noise import draw_noise
from diffgan.pairs import generation
from diffgan.pairs.claims import Claim, claim_file
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.digests import tensors_digest
from diffgan.storage.open import open_store
from diffgan.storage.processes import Worker, this_worker
from diffgan.teachers.cost import Network
from tests.pair_sets import refusal, shards


def shown(capsys, *words) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_the_group_and_its_verbs_explain_themselves(capsys):
    for words, said in {
        ("pairs", "--help"): "progress of a pair set",
        ("pairs", "plan", "--help"): "-c CONFIG",
    }.items():
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
    assert "of work, which ended 2 hours ago" in told and "no sign of anyone at work" in told


def test_status_needs_a_set(tmp_path, capsys):
    assert "manifest.json: no pair set" in refusal(capsys, ["pairs", "status", str(tmp_path)])


def test_status_names_a_truncated_shard_and_goes_on(whole, capsys):
    os.truncate(whole / shards(whole)[2], 100)
    told = shown(capsys, "pairs", "status", whole)
    assert re.search(rf"damaged +{whole / shards(whole)[2]} \(.+\); delete it and run `diffgan predict` again", told)
    assert "0 prompts of whole shards were too long" in told


def test_status_counts_the_shards_of_an_older_version(whole, capsys):
    """They do not tell how many of their prompts were cut."""
    file = whole / shards(whole)[0]
    with safe_open(file, framework="pt") as archive:
        header = json.loads(archive.metadata()["diffgan"])
    del header["truncated"]
    save_file(load_file(file), file, {"diffgan": json.dumps(header)})
    assert "damaged" not in shown(capsys, "pairs", "status", whole)


@pytest.mark.parametrize("verb", ["status", "verify"])
@pytest.mark.parametrize(
    "change",
    [
        {"pairs": "abc"},
        {"pairs": 0},
        {"pairs": True},
        {"shard_size": 0},
        {"batch_size": -1},
        {"steps": 2.5},
        {"seed_base": -1},
        {"latent_shape": [4, 8]},
        {"latent_shape": [4, 8, "8"]},
        {"latent_shape": 4},
        {"scheduler": []},
        {"teacher": None},
        {"guidance": "8"},
    ],
)
def test_a_manifest_of_odd_values_is_refused_by_field(verb, change, whole, capsys):
    file = whole / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (name, value), line = *change.items(), refusal(capsys, ["pairs", verb, str(whole)])
    assert f"{file}: {name} is {value!r} there and must be" in line


def test_status_tells_how_long_a_worker_elsewhere_gave_no_sign(whole, capsys):
    """Nobody can see from here whether it is dead, nor how long its lease is."""
    (whole / shards(whole)[5]).unlink()
    open_store(whole).write(
        claim_file(5), Claim(Worker("node7", "elsewhere", 12, "1"), time.time() - 9000, time.time()).content()
    )
    os.utime(whole / claim_file(5), (time.time() - 8100,) * 2)
    told = shown(capsys, "pairs", "status", whole)
    assert "no sign for 2.25 hours, free for anyone with fewer lease_seconds" in told
    assert "dead" not in told and "no sign of anyone at work" in told


def test_status_knows_a_dead_worker_of_this_machine(whole, capsys):
    (whole / shards(whole)[5]).unlink()
    dead = this_worker()._replace(born="before")
    open_store(whole).write(claim_file(5), Claim(dead, time.time(), time.time()).content())
    assert "; dead, free for anyone" in shown(capsys, "pairs", "status", whole)


# ---- predict ----


def test_a_root_folder_that_cannot_be_made_is_refused_in_one_line(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "runs"
    line = refusal(capsys, command(tmp_path / "set", f"--trainer.default_root_dir={root}"))
    assert f"{root}: predict.yaml cannot be written (" in line


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


@pytest.fixture(scope="module")
def with_noise(command, tmp_path_factory):
    """A set that holds its noise, which nobody may change."""
    folder = tmp_path_factory.mktemp("stored") / "with_noise"
    words = command(folder)
    file = Path(words[-1])
    config = yaml.safe_load(file.read_text())
    config["trainer"]["callbacks"][0]["init_args"]["store_noise"] = True
    file.write_text(yaml.safe_dump(config))
    main(words)
    return folder


def draw_other_noise(monkeypatch):
    """As a torch would whose generator is another one."""
    other = lambda seeds, shape: draw_noise([int(seed) + 1 for seed in seeds], shape)  # noqa: E731
    for module in (generation, verify):
        monkeypatch.setattr(module, "draw_noise", other)


def test_verify_takes_the_noise_that_is_stored(with_noise, unbroken, monkeypatch, capsys):
    draw_other_noise(monkeypatch)
    assert "44 pairs made again" in shown(capsys, "pairs", "verify", with_noise)
    assert "draws other noise here" in refusal(capsys, ["pairs", "verify", str(unbroken)])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors["noise"][1, 0, 0, 0].add_(1), "noise does not begin with noise_head"),
        (lambda tensors: tensors.update(noise=tensors["noise"][:, :2].clone()), "noise is (8, 2, "),
        (lambda tensors: tensors["noise"][0, -1].fill_(float("inf")), "noise is not finite"),
        (lambda tensors: tensors.pop("noise"), "noise"),
    ],
)
def test_verify_checks_the_noise_that_is_stored(with_noise, change, message, tmp_path, capsys):
    folder = shutil.copytree(with_noise, tmp_path / "spoilt")
    file = folder / shards(folder)[2]
    rewritten(file, change, keep_digest=False)
    line = refusal(capsys, ["pairs", "verify", str(folder), "--sample", "0"])
    assert f"{file}: shard is damaged" in line and message in line


def test_verify_makes_pairs_again_from_the_noise_that_is_stored(with_noise, tmp_path, capsys):
    folder = shutil.copytree(with_noise, tmp_path / "spoilt")
    file = folder / shards(folder)[2]
    rewritten(file, lambda tensors: tensors["noise"][1, -1].neg_(), keep_digest=False)
    assert f"{file}: made again, seed 27 deviates" in refusal(capsys, ["pairs", "verify", str(folder)])


def test_verify_wants_the_teacher_of_the_set(whole, other_pipeline, capsys, tiny_pipeline, tmp_path):
    assert "not the teacher of this set" in refusal(
        capsys, ["pairs", "verify", str(whole), "--teacher", str(other_pipeline)]
    )
    moved = shutil.copytree(tiny_pipeline, tmp_path / "moved")
    assert "44 pairs made again" in shown(capsys, "pairs", "verify", whole, "--teacher", moved)


@pytest.mark.parametrize("missing, others", [([3], ""), ([3, 4], ", and 1 other"), ([3, 4, 5], ", and 2 others")])
def test_verify_and_readers_tell_missing_shards_alike(missing, others, whole, capsys):
    for shard in missing:
        (whole / f"pairs-{shard:05d}-of-00006.safetensors").unlink()
    told = f"{whole}/pairs-00003-of-00006.safetensors: shard is missing{others}; run `diffgan predict` with the "
    assert told in refusal(capsys, ["pairs", "verify", str(whole)])
    with pytest.raises(UserError, match=f"^{re.escape(told)}"):
        PairSet(whole)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sample", "-5"], "--sample: -5 must be at least 0"),
        (["--tolerance", "-1"], "--tolerance: -1.0 must be at least 0"),
        (["--tolerance", ".nan"], "--tolerance: nan must be at least 0"),
    ],
)
def test_verify_refuses_options_that_cannot_be(options, message, unbroken, capsys):
    assert message in refusal(capsys, ["pairs", "verify", str(unbroken), *options])


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
        (["--calls_per_second", "0"], "--calls_per_second: 0.0 must be more than 0"),
        (["--calls_per_second", ".nan"], "--calls_per_second: nan must be more than 0"),
        (["--calls_per_second", ".inf"], "--calls_per_second: inf must be more than 0"),
        (["--peak_tflops", "-1", "--utilization", "0.3"], "--peak_tflops: -1.0 must be more than 0"),
        (["--peak_tflops", "3", "--utilization", "0"], "--utilization: 0.0 must be more than 0 and at most 1"),
        (["--peak_tflops", "3", "--utilization", "30"], "--utilization: 30.0 must be more than 0 and at most 1"),
        (["--devices", "0"], "--devices: 0 must be at least 1"),
        (["--devices", "-2"], "--devices: -2 must be at least 1"),
    ],
)
def test_plan_refuses_options_that_cannot_be(options, message, command, tmp_path, capsys):
    assert message in refusal(capsys, ["pairs", "plan", *command(tmp_path / "set")[1:], *options])


def test_plan_refuses_a_shard_size_that_cannot_be(command, tmp_path, capsys):
    words = command(tmp_path / "set")[1:]
    (tmp_path / "more.yaml").write_text(
        "trainer: {callbacks: [{class_path: callbacks.pair_writer.PairWriter, "
        f"init_args: {{folder: {tmp_path / 'set'}, shard_size: 0}}}}]}}"
    )
    line = refusal(capsys, ["pairs", "plan", *words, "-c", str(tmp_path / "more.yaml")])
    assert "shard_size: 0 must be at least 1" in line
