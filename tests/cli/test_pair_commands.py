"""`diffgan pairs status, verify, plan`: what they print and what they refuse."""

import json
import os
import re
import shutil
import subprocess
import sys
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
from diffgan.pairs.claims import Claim, claim_name
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.open import open_store
from diffgan.storage.processes import Worker, this_worker
from diffgan.storage.tensor_files import tensors_digest
from diffgan.teachers.cost import NetworkCost
from tests.pair_sets import refusal, shards, writer_settings


def shown(capsys, *words) -> str:
    capsys.readouterr()
    main([str(word) for word in words])
    return capsys.readouterr().out


def test_pairs_and_its_verbs_have_help(capsys):
    for words, expected in {
        ("pairs", "--help"): "progress of a pair set",
        ("pairs", "plan", "--help"): "-c CONFIG",
    }.items():
        with pytest.raises(SystemExit) as exit:
            main(words)
        assert exit.value.code == 0 and expected in capsys.readouterr().out
    for words in ([], ["sweep"]):
        with pytest.raises(SystemExit) as exit:
            main(["pairs", *words])
        assert exit.value.code == 2


# ---- status ----


def test_status_of_a_half_finished_set(complete_set, capsys):
    now = time.time()
    for shard, name in enumerate(shards(complete_set)):
        os.utime(complete_set / name, (now - 100 + shard,) * 2)
    os.utime(complete_set / "manifest.json", (now - 200,) * 2)
    for name in shards(complete_set)[4:]:
        (complete_set / name).unlink()
    open_store(complete_set).write(
        claim_name(5), Claim(Worker("node7", "elsewhere", 12, "1"), now - 60, now - 60).content()
    )
    output = shown(capsys, "pairs", "status", complete_set)
    assert "44 pairs in 6 shards of 8" in output and "32 pairs (72.7%): 4 shards" in output and "12 pairs\n" in output
    assert re.search(r"shard 5 by node7, process 12, since 6\d\S* seconds, refreshed \S+ seconds ago", output)
    rate = float(re.search(r"([\d.]+) pairs/s over the last", output)[1])
    assert rate == pytest.approx(32 / 200, rel=0.05)
    assert re.search(r"7\d seconds at that rate", output)
    size = sum((complete_set / name).stat().st_size for name in shards(complete_set))
    assert f"{size / 1000:.3g} kB now, {size / 32 * 44 / 1000:.3g} kB in the end" in output


def test_status_of_an_interrupted_set(complete_set, capsys):
    (complete_set / shards(complete_set)[0]).unlink()
    for file in complete_set.iterdir():
        os.utime(file, (time.time() - 7200,) * 2)
    output = shown(capsys, "pairs", "status", complete_set)
    assert "of work, which ended 2 hours ago" in output and "no worker seems to be active" in output


def test_status_of_a_folder_without_a_set_fails(tmp_path, capsys):
    assert "manifest.json: no pair set" in refusal(capsys, ["pairs", "status", str(tmp_path)])


def test_status_names_a_truncated_shard_and_continues(complete_set, capsys):
    os.truncate(complete_set / shards(complete_set)[2], 100)
    output = shown(capsys, "pairs", "status", complete_set)
    assert re.search(
        rf"damaged +{complete_set / shards(complete_set)[2]} \(.+\); delete it and run `diffgan predict` again", output
    )
    assert "0 prompts of finished shards were longer" in output


def test_status_counts_the_shards_of_an_older_version(complete_set, capsys):
    """Their headers do not say how many of their prompts were truncated."""
    file = complete_set / shards(complete_set)[0]
    with safe_open(file, framework="pt") as archive:
        header = json.loads(archive.metadata()["diffgan"])
    del header["truncated"]
    save_file(load_file(file), file, {"diffgan": json.dumps(header)})
    assert "damaged" not in shown(capsys, "pairs", "status", complete_set)


def test_status_does_not_import_torch(complete_set):
    """It is run often, and importing torch takes longer than the listing."""
    program = """
import sys
from diffgan.cli.pairs.status import status
status(sys.argv[1])
print("imported:", *sorted({"torch", "lightning", "diffusers", "transformers"} & sys.modules.keys()))
"""
    words = [sys.executable, "-c", program, str(complete_set)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "44 pairs (100.0%)" in "".join(lines) and lines[-1] == "imported:"


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
def test_a_manifest_with_an_invalid_value_is_refused_by_field(verb, change, complete_set, capsys):
    file = complete_set / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    (name, value), line = *change.items(), refusal(capsys, ["pairs", verb, str(complete_set)])
    assert f"{file}: {name} is {value!r} there and must be" in line


def test_status_says_how_long_a_worker_elsewhere_did_not_refresh_its_claim(complete_set, capsys):
    """Whether it is dead and how long its lease is cannot be known from here."""
    (complete_set / shards(complete_set)[5]).unlink()
    open_store(complete_set).write(
        claim_name(5), Claim(Worker("node7", "elsewhere", 12, "1"), time.time() - 9000, time.time()).content()
    )
    os.utime(complete_set / claim_name(5), (time.time() - 8100,) * 2)
    output = shown(capsys, "pairs", "status", complete_set)
    assert "not refreshed for 2.25 hours, a worker with fewer lease_seconds may take it over" in output
    assert "dead" not in output and "no worker seems to be active" in output


def test_status_reports_a_dead_worker_of_this_machine(complete_set, capsys):
    (complete_set / shards(complete_set)[5]).unlink()
    dead = this_worker()._replace(born="before")
    open_store(complete_set).write(claim_name(5), Claim(dead, time.time(), time.time()).content())
    assert "; dead, any worker may take it over" in shown(capsys, "pairs", "status", complete_set)


# ---- predict ----


def test_a_root_folder_that_cannot_be_created_is_refused_in_one_line(command, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "runs"
    line = refusal(capsys, command(tmp_path / "set", f"--trainer.default_root_dir={root}"))
    assert f"{root}: predict.yaml cannot be written (" in line


# ---- verify ----


def test_verify_accepts_an_intact_set(unbroken, capsys):
    output = shown(capsys, "pairs", "verify", unbroken, "--sample", 10)
    assert "6 shards, 44 pairs: headers, seeds, prompts, values, digests are right" in output
    pairs, batches = map(int, re.search(r"(\d+) pairs in (\d) batches made again on the same kind of", output).groups())
    assert 10 <= pairs <= 12 and batches in (4, 5) and output.endswith("libraries: all bits are the same\n")


def test_verify_with_a_tolerance_prints_the_deviation(unbroken, capsys):
    output = shown(capsys, "pairs", "verify", unbroken, "--tolerance", 0.01)
    assert "44 pairs in 17 batches made again deviate" in output
    deviation, largest = map(float, re.search(r"most (\S+) of latents up to (\S+), allowed 0.01", output).groups())
    assert 0 < deviation <= 2**-11 * largest + 1e-4


def rewritten(file, change, keep_digest=True):
    """Change the tensors of a shard, and the digest in its header unless that is kept."""
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
        (flip, "its bytes do not match its digest"),
        (lambda tensors: tensors["latent"][0].fill_(float("nan")), "latent is not finite"),
        (lambda tensors: tensors["seed"].add_(1), "seeds of other pairs"),
        (lambda tensors: tensors["prompt_offsets"][-1:].add_(1), "prompt_offsets do not match"),
        (lambda tensors: tensors.pop("noise_head"), "noise_head"),
    ],
)
def test_verify_names_the_shard_and_the_fault(complete_set, change, message, capsys):
    file = complete_set / shards(complete_set)[2]
    rewritten(file, change)
    line = refusal(capsys, ["pairs", "verify", str(complete_set), "--sample", "0"])
    assert str(file) in line and message in line


def test_verify_makes_pairs_again(complete_set, capsys):
    file = complete_set / shards(complete_set)[2]
    rewritten(file, flip, keep_digest=False)
    line = refusal(capsys, ["pairs", "verify", str(complete_set)])
    assert f"{file}: made again, seed 27 deviates by 0.5" in line


def test_verify_detects_other_noise(complete_set, capsys):
    file = complete_set / shards(complete_set)[3]
    rewritten(file, lambda tensors: tensors["noise_head"][2].add_(1), keep_digest=False)
    assert f"{file}: seed 36 draws other noise" in refusal(capsys, ["pairs", "verify", str(complete_set)])


@pytest.fixture(scope="module")
def with_noise(command, tmp_path_factory):
    """A set with stored noise; tests must not change it."""
    folder = tmp_path_factory.mktemp("stored") / "with_noise"
    words = command(folder)
    file = Path(words[-1])
    config = yaml.safe_load(file.read_text())
    writer_settings(config)["store_noise"] = True
    file.write_text(yaml.safe_dump(config))
    main(words)
    return folder


def draw_other_noise(monkeypatch):
    """As a version of torch with another generator would."""
    other = lambda seeds, shape: draw_noise([int(seed) + 1 for seed in seeds], shape)  # noqa: E731
    for module in (generation, verify):
        monkeypatch.setattr(module, "draw_noise", other)


def test_verify_uses_stored_noise(with_noise, unbroken, monkeypatch, capsys):
    draw_other_noise(monkeypatch)
    assert "44 pairs in 17 batches made again" in shown(capsys, "pairs", "verify", with_noise)
    assert "draws other noise here" in refusal(capsys, ["pairs", "verify", str(unbroken)])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda tensors: tensors["noise"][1, 0, 0, 0].add_(1), "noise does not begin with noise_head"),
        (lambda tensors: tensors.update(noise=tensors["noise"][:, :2].clone()), "noise has shape (8, 2, "),
        (lambda tensors: tensors["noise"][0, -1].fill_(float("inf")), "noise is not finite"),
        (lambda tensors: tensors.pop("noise"), "noise"),
    ],
)
def test_verify_checks_stored_noise(with_noise, change, message, tmp_path, capsys):
    folder = shutil.copytree(with_noise, tmp_path / "changed")
    file = folder / shards(folder)[2]
    rewritten(file, change, keep_digest=False)
    line = refusal(capsys, ["pairs", "verify", str(folder), "--sample", "0"])
    assert f"{file}: shard is damaged" in line and message in line


def test_verify_makes_pairs_again_from_stored_noise(with_noise, tmp_path, capsys):
    folder = shutil.copytree(with_noise, tmp_path / "changed")
    file = folder / shards(folder)[2]
    rewritten(file, lambda tensors: tensors["noise"][1, -1].neg_(), keep_digest=False)
    assert f"{file}: made again, seed 27 deviates" in refusal(capsys, ["pairs", "verify", str(folder)])


def test_verify_requires_the_teacher_of_the_set(complete_set, other_pipeline, capsys, tiny_pipeline, tmp_path):
    assert "not the teacher of this set" in refusal(
        capsys, ["pairs", "verify", str(complete_set), "--teacher", str(other_pipeline)]
    )
    moved = shutil.copytree(tiny_pipeline, tmp_path / "moved")
    assert "44 pairs in 17 batches made again" in shown(capsys, "pairs", "verify", complete_set, "--teacher", moved)


@pytest.mark.parametrize("missing, others", [([3], ""), ([3, 4], ", and 1 other"), ([3, 4, 5], ", and 2 others")])
def test_verify_and_readers_report_missing_shards_with_the_same_line(missing, others, complete_set, capsys):
    for shard in missing:
        (complete_set / f"pairs-{shard:05d}-of-00006.safetensors").unlink()
    output = (
        f"{complete_set}/pairs-00003-of-00006.safetensors: shard is missing{others}; run `diffgan predict` with the "
    )
    assert output in refusal(capsys, ["pairs", "verify", str(complete_set)])
    with pytest.raises(UserError, match=f"^{re.escape(output)}"):
        PairSet(complete_set)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--sample", "-5"], "--sample: -5 must be at least 0"),
        (["--tolerance", "-1"], "--tolerance: -1.0 must be at least 0"),
        (["--tolerance", ".nan"], "--tolerance: nan must be at least 0"),
    ],
)
def test_verify_refuses_options_out_of_range(options, message, unbroken, capsys):
    assert message in refusal(capsys, ["pairs", "verify", str(unbroken), *options])


# ---- plan ----


def test_plan_prints_what_is_known_and_makes_nothing(command, tmp_path, capsys):
    words = ["pairs", "plan", *command(tmp_path / "set")[1:]]
    output = shown(capsys, *words)
    assert (
        "44 in 6 shards of 8" in output
        and "4 a pair, 176 in all" in output
        and "hours" in output
        and "unknown" in output
    )
    output = shown(capsys, *words, "--calls_per_second", 8, "--devices", 2)
    assert "4 pairs/s on 2 device(s): 8.0 calls/s a device, as given" in output and "0.00306 (11 seconds)" in output
    output = shown(capsys, *words, "--measure")
    assert re.search(r"pairs/s on 1 device\(s\): 3 pairs took \S+ s on (cpu|cuda)", output)
    assert not (tmp_path / "set").exists()


def test_the_disk_that_plan_prints_is_what_the_set_takes(command, unbroken, capsys):
    output = shown(capsys, "pairs", "plan", *command(unbroken)[1:])
    planned = float(re.search(r"disk +([\d.]+) kB", output)[1]) * 1000
    data = sum(tensor.nbytes for name in shards(unbroken) for tensor in load_file(unbroken / name).values())
    assert planned == pytest.approx(data, rel=0.01)


def test_plan_counts_the_operations_of_stable_diffusion(tmp_path):
    """0.80 TFLOPs a call at 64x64: 401.5 G multiplications and additions, as other tools count."""
    with torch.device("meta"):
        UNet2DConditionModel(sample_size=64, cross_attention_dim=768).save_config(tmp_path / "unet")
    CLIPTextConfig(max_position_embeddings=77).save_pretrained(tmp_path / "text_encoder")
    DDIMScheduler().save_config(tmp_path / "scheduler")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    cost = NetworkCost(str(tmp_path))
    assert cost.flops() == pytest.approx(0.803e12, rel=0.01)
    assert cost.embedding_bytes() == 77 * 768 * 4 and cost.calls(50, "HeunDiscreteScheduler") == 99


@pytest.mark.parametrize(
    "options, message",
    [
        (["--measure", "--calls_per_second", "3"], "give one of"),
        (["--peak_tflops", "3"], "--peak_tflops and --utilization require each other"),
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
def test_plan_refuses_options_out_of_range(options, message, command, tmp_path, capsys):
    assert message in refusal(capsys, ["pairs", "plan", *command(tmp_path / "set")[1:], *options])


def test_plan_refuses_a_shard_size_below_one(command, tmp_path, capsys):
    words = command(tmp_path / "set")[1:]
    (tmp_path / "more.yaml").write_text(
        "trainer: {callbacks: [{class_path: callbacks.pair_writer.PairWriter, "
        f"init_args: {{folder: {tmp_path / 'set'}, shard_size: 0}}}}]}}"
    )
    line = refusal(capsys, ["pairs", "plan", *words, "-c", str(tmp_path / "more.yaml")])
    assert "shard_size: 0 must be at least 1" in line
