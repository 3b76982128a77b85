"""Batches of a set made again: bit by bit where they were made, within limits elsewhere; what shards record of it."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffgan.__main__ import main
from diffgan.pairs.devices import device_kind
from diffgan.pairs.manifest import Manifest, versions
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.open import open_store
from diffgan.storage.tensor_files import tensors_digest
from tests.pair_sets import contents, die_at_write, partial_shards, refusal, shards
from tests.processes import run_apart

OLD = Path(__file__).parents[1] / "data" / "v0.1"
H100 = "NVIDIA H100 80GB HBM3"


def header(file: Path) -> dict:
    with safe_open(file, framework="pt") as archive:
        return json.loads(archive.metadata()["diffgan"])


def change(folder: Path, names, made=None, latent=lambda latent: None, **fields) -> None:
    """Rewrite shards: how they were made, their latents, and fields of header and manifest."""
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    for name in names:
        tensors, metadata = load_file(folder / name), header(folder / name) | fields
        tensors = {key: tensor.clone() for key, tensor in tensors.items()}
        latent(tensors["latent"])
        metadata |= {"digest": tensors_digest(tensors)} | ({} if made is None else {"made": made})
        save_file(tensors, folder / name, {"diffgan": json.dumps(metadata)})


def making(**changes) -> dict:
    return {"device": device_kind("cpu"), "versions": versions(), "compile": False} | changes


def verified(capsys, folder: Path, *options: str) -> str:
    capsys.readouterr()
    main(["pairs", "verify", str(folder), *options])
    return capsys.readouterr().out


# ---- what is recorded ----


def test_manifest_and_shards_say_how_batches_were_made(unbroken):
    manifest = json.loads((unbroken / "manifest.json").read_text())
    assert manifest["device"] == device_kind("cpu") and manifest["device"].startswith("CPU ")
    for name in shards(unbroken):
        assert header(unbroken / name)["made"] == [making()] and header(unbroken / name)["batch_size"] == 3


def test_the_device_is_omitted_where_it_is_unknown(unbroken):
    values = json.loads((unbroken / "manifest.json").read_text())
    del values["device"]
    old = Manifest.parse(json.dumps(values).encode(), "old")
    assert old.device == "" and old.made() is None and b"device" not in old.content()
    assert json.loads(old.content()) == values
    new = Manifest.read(open_store(unbroken))
    assert new.content() == (unbroken / "manifest.json").read_bytes() and new.identity() == old.identity()


def test_a_set_of_version_0_1_is_finished_as_it_was_begun(tmp_path, monkeypatch, capsys):
    """The shard made again has the same header and tensors; another processor may round latents in another way."""
    for name in ("teacher", "pairs", "prompts.txt", "pairs.yaml"):
        copy = shutil.copytree if (OLD / name).is_dir() else shutil.copy
        copy(OLD / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before, again = contents(Path("pairs")), Path("pairs") / shards(Path("pairs"))[1]
    old_header, old_tensors = header(again), load_file(again)
    again.unlink()
    main(["predict", "-c", "pairs.yaml"])
    after = contents(Path("pairs"))
    assert {name for name in before | after if before.get(name) != after.get(name)} <= {again.name}
    assert header(again) | {"digest": ""} == old_header | {"digest": ""}
    new_tensors = load_file(again)
    assert new_tensors.keys() == old_tensors.keys()
    for name, tensor in new_tensors.items():
        torch.testing.assert_close(tensor, old_tensors[name], atol=2e-3 if name == "latent" else 0, rtol=0)
    output = verified(capsys, Path("pairs"))
    assert "what made them is unknown: " in output and "deviate by at most" in output
    assert all(
        "made" not in header(file) and "batch_size" not in header(file) for file in Path("pairs").glob("*.safe*")
    )


# ---- verify ----


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_batches_have_the_same_bits_where_they_were_made(command, tmp_path, capsys, precision):
    """In the batches of the set: alone, pairs are rounded differently."""
    main(command(tmp_path / "set", f"--trainer.precision={precision}", "--data.init_args.pairs=16"))
    assert "16 pairs in 6 batches made again on the same kind of device with the same libraries: all bits are" in (
        verified(capsys, tmp_path / "set")
    )


def test_a_change_of_one_bit_is_found_where_the_set_was_made(complete_set, capsys):
    change(complete_set, shards(complete_set)[2:3], latent=lambda latent: latent.view(torch.int16)[5].add_(1))
    line = refusal(capsys, ["pairs", "verify", str(complete_set)])
    assert f"{shards(complete_set)[2]}: made again, seed 31 deviates by" in line
    assert "its bits should be the same on this device with these libraries; --tolerance sets a limit" in line
    assert "44 pairs in 17 batches" in verified(capsys, complete_set, "--tolerance", "0.01")


def test_a_set_finished_with_another_batch_size_is_made_again_with_both(command, complete_set, capsys):
    (complete_set / shards(complete_set)[1]).unlink()
    main(command(complete_set, "--data.init_args.batch_size=5"))
    assert header(complete_set / shards(complete_set)[1])["batch_size"] == 5
    assert "44 pairs in 16 batches made again on the same kind" in verified(capsys, complete_set)


def test_latents_of_another_device_may_deviate_by_rounding(complete_set, capsys):
    size = PairSet(complete_set).read(range(44)).latent.square().mean().sqrt().item()
    rounding = lambda latent: latent[3, 0, 0, 0].add_(0.1 * size)  # noqa: E731
    change(complete_set, shards(complete_set), [making(device=H100)], rounding, device=H100)
    output = verified(capsys, complete_set)
    assert f"on {device_kind('cpu')}; they were made on {H100}: 38 have the same bits; they deviate" in output
    change(complete_set, shards(complete_set)[4:5], latent=lambda latent: latent[2].mul_(-1))
    line = refusal(capsys, ["pairs", "verify", str(complete_set)])
    assert f"{shards(complete_set)[4]}: made again, seed 44 deviates" in line
    assert "of the latents' rms, allowed 0.02" in line


def test_a_single_wrong_value_is_found_elsewhere_too(complete_set, capsys):
    size = PairSet(complete_set).read(range(44)).latent.square().mean().sqrt().item()
    change(complete_set, shards(complete_set), [making(versions={"torch": "1.0"})])
    assert f"on {device_kind('cpu')} with other libraries; they were made on CPU" in verified(capsys, complete_set)
    change(complete_set, shards(complete_set)[:1], latent=lambda latent: latent[2, 0, 1, 1].sub_(0.05 * size))
    assert "seed 12 deviates by" in refusal(capsys, ["pairs", "verify", str(complete_set)])


def test_shards_of_several_devices_are_compared_each_as_it_was_made(complete_set, capsys):
    change(complete_set, shards(complete_set)[:2], [making(device=H100)])
    change(complete_set, shards(complete_set)[2:3], [making(), making(device=H100)])
    exact, near = verified(capsys, complete_set).splitlines()[1:]
    assert "20 pairs in 8 batches made again on the same kind of device" in exact
    assert "24 pairs in 9 batches made again on CPU" in near and f" and {H100}: 24 have the same bits" in near


def test_a_shard_of_several_devices_says_so(command, tmp_path):
    """Its worker was killed, and another machine finished it."""
    folder = tmp_path / "set"
    assert run_apart(die_at_write, command(folder), 5) == -9
    name, *others = partial_shards(folder)
    for other in others:  # a thread writes them, so their number differs; none may complete the shard
        (folder / "parts" / other).unlink()
    begun = name[:5]
    tensors, metadata = load_file(folder / "parts" / name), header(folder / "parts" / name)
    save_file(tensors, folder / "parts" / name, {"diffgan": json.dumps(metadata | {"made": [making(device=H100)]})})
    main(command(folder))
    expected = [making(device=H100), making()]
    assert [header(folder / name)["made"] for name in shards(folder) if name.startswith(f"pairs-{begun}")] == [expected]
    assert all(header(folder / name)["made"] == [making()] for name in shards(folder) if f"pairs-{begun}" not in name)


# ---- float16 ----


@pytest.mark.parametrize("precision", ["16-mixed", "16"])
def test_float16_without_a_gpu_is_refused_before_anything_is_written(command, tmp_path, capsys, precision):
    words = command(tmp_path / "set")
    line = refusal(capsys, [*words, f"--trainer.precision={precision}"])
    assert line.endswith(f"trainer.precision: {precision} requires a GPU; use 32-true or bf16-mixed on a CPU")
    assert not (tmp_path / "set").exists()
    (tmp_path / "half.yaml").write_text(f"trainer: {{precision: {precision}}}")
    plan = ["pairs", "plan", *words[1:], "-c", str(tmp_path / "half.yaml")]
    main(plan)  # for another machine
    assert "requires a GPU" in refusal(capsys, [*plan, "--measure"])


def test_a_set_in_float16_is_verified_on_a_cpu_in_float32(complete_set, capsys):
    change(complete_set, shards(complete_set), [making(device=H100)], precision="16-mixed", device=H100)
    assert f"they were made on {H100}: 44 have the same bits" in verified(capsys, complete_set)
