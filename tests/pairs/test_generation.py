"""Pair generation through the command: what it writes, resumes and refuses."""

import json
import os
import subprocess
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open

from datamodules.prompts import Prompts
from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.pairs.manifest import Manifest
from diffgan.pairs.pair_set import PairSet
from diffgan.storage.open import open_store
from diffgan.storage.processes import machine
from diffgan.teachers.registry import load_teacher
from diffgan.training.refusals import stop_together
from tests.pair_sets import PAIRS, contents, refusal, write_shard, writer_settings
from tests.processes import run_on_two_processes


def test_numbers_out_of_range_are_refused(tmp_path):
    prompts = tmp_path / "none.txt"
    for pairs, seed_base, batch_size, message in (
        (0, 0, 1, "pairs: 0"),
        (1, 0, 0, "batch_size: 0"),
        (1, 2**32, 1, "seed_base"),
        (1, 0, 1, "none.txt: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            Prompts(prompts, pairs, seed_base, batch_size).setup("predict")


def test_the_latents_are_those_of_the_teacher(unbroken, tiny_pipeline):
    read = PairSet(unbroken).read(range(PAIRS))
    assert read.seed.tolist() == list(range(10, 10 + PAIRS))
    assert read.prompt == [["capital A in red", "digit 7 on cream", "grüße ☃"][i % 3] for i in range(PAIRS)]
    assert sorted(contents(unbroken)) == ["manifest.json", *(f"pairs-{i:05d}-of-00006.safetensors" for i in range(6))]
    teacher = load_teacher(str(tiny_pipeline))
    solved = teacher.solve(read.noise, teacher.encode(read.prompt), 2, 3.0)
    assert (solved - read.latent).abs().max() < 2e-3


def test_the_bytes_are_those_of_batches_written_by_hand(unbroken, tiny_pipeline, tmp_path):
    """Partial shards, threads and claims leave no trace in a shard."""
    manifest, teacher = Manifest.read(open_store(unbroken)), load_teacher(str(tiny_pipeline))
    pairs = PairSet(unbroken).read(manifest.span(1))
    latent = [
        teacher.solve(pairs.noise[rows], teacher.encode(pairs.prompt[rows]), 2, 3.0)
        for rows in (slice(0, 3), slice(3, 6), slice(6, 8))
    ]
    write_shard(tmp_path, manifest, 1, pairs._replace(latent=torch.cat(latent)))
    assert manifest.file(tmp_path, 1).read_bytes() == manifest.file(unbroken, 1).read_bytes()


def test_running_it_again_changes_nothing(complete_set, command, capsys):
    before = {file: file.stat().st_mtime_ns for file in complete_set.glob("*.safetensors")}
    main(command(complete_set))
    assert before == {file: file.stat().st_mtime_ns for file in complete_set.glob("*.safetensors")}
    assert "complete, all 44 pairs exist" in capsys.readouterr().err


def test_missing_shards_are_made_again_and_leftovers_removed(complete_set, unbroken, command, capsys):
    for shard in (0, 4):
        (complete_set / f"pairs-{shard:05d}-of-00006.safetensors").unlink()
    leave_partials(complete_set)
    main(command(complete_set))
    assert contents(complete_set) == contents(unbroken)
    assert "44/44 pairs" in capsys.readouterr().err


def test_half_written_files_are_removed_once_their_writer_is_dead(complete_set, command):
    gone, old, fresh = leave_partials(complete_set)
    fresh.touch()
    main(command(complete_set))
    assert not gone.exists() and not old.exists() and fresh.exists()


def test_half_written_files_of_other_programs_are_left_alone(complete_set, command):
    writer = "77.0123abcd-1-1.partial"
    names = (f"sub/00000-0-2.safetensors.{writer}", f"sub/parts/00001.{writer}", "movie.mkv.partial")
    foreign = [complete_set / name for name in (*names, "claims/7.partial", f"mine.txt.{writer}")]
    for file in foreign:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"half")
        os.utime(file, (0, 0))
    main(command(complete_set))
    assert all(file.exists() for file in foreign)


def leave_partials(folder: Path) -> list[Path]:
    """Files half-written by a dead process of this machine, and by two processes of another machine."""
    process = subprocess.Popen(["true"])
    process.wait()
    (folder / "parts").mkdir()
    names = [f"{machine()}-{process.pid}-1", "0123abcd-1-1", "0123abcd-2-1"]
    partials = [folder / "parts" / f"00000-0-2.safetensors.77.{name}.partial" for name in names]
    for partial in partials:
        partial.write_bytes(b"half")
        os.utime(partial, (0, 0))
    return partials


def test_other_settings_are_refused_by_name_and_nothing_is_overwritten(
    complete_set, command, other_pipeline, capsys, tmp_path
):
    before = {file.name: file.read_bytes() for file in complete_set.iterdir()}
    other = tmp_path / "other.txt"
    other.write_text("digit 8\n")
    for option, field in {
        f"--model.init_args.teacher={other_pipeline}": "teacher_digest",
        "--model.init_args.guidance=1.0": "guidance",
        "--data.init_args.pairs=45": "pairs",
        f"--data.init_args.prompts={other}": "prompts_digest",
    }.items():
        assert f"manifest.json: another pair set: {field} is" in refusal(capsys, command(complete_set, option))
    assert {file.name: file.read_bytes() for file in complete_set.iterdir()} == before


def flip_a_latent(shard: Path) -> None:
    with safe_open(shard, framework="pt") as archive:
        latent = archive.get_tensor("latent").numpy().tobytes()
    content = bytearray(shard.read_bytes())
    content[content.index(latent)] ^= 1
    shard.write_bytes(content)


def test_flipped_bytes_are_refused(complete_set, command, capsys, monkeypatch):
    shard = complete_set / "pairs-00003-of-00006.safetensors"
    flip_a_latent(shard)
    line = refusal(capsys, command(complete_set))
    assert f"{shard}: shard is damaged (its bytes do not match its digest); delete it" in line
    monkeypatch.setattr("diffgan.pairs.opening.COMPARED_BYTES", 1000)
    main(command(complete_set))
    assert "complete, all 44 pairs exist; `diffgan pairs verify` compares their bytes" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["shards", "parts"])
def test_a_refused_command_leaves_no_manifest(complete_set, unbroken, command, capsys, tmp_path, kind):
    folder = complete_set if kind == "shards" else tmp_path / "interrupted"
    if kind == "parts":
        main(command(folder, "--trainer.limit_predict_batches=1"))
    (folder / "manifest.json").unlink()
    before = contents(folder)
    for option, field in {"--model.init_args.steps=3": "steps", "--data.init_args.pairs=60": "pairs"}.items():
        assert f"another pair set: {field} is" in refusal(capsys, command(folder, option))
        assert contents(folder) == before
    main(command(folder))
    assert contents(folder) == contents(unbroken)


def test_a_truncated_shard_is_refused_and_kept(complete_set, command, capsys):
    shard = complete_set / "pairs-00003-of-00006.safetensors"
    os.truncate(shard, 1000)
    assert f"{shard}: shard is damaged" in refusal(capsys, command(complete_set))
    assert shard.stat().st_size == 1000


def test_bad_input_is_refused_before_anything_is_made(command, tmp_path, capsys):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n  \n")
    latin.write_bytes("grün".encode("latin-1"))
    for option, message in {
        f"--data.init_args.prompts={empty}": f"{empty}: no prompts in it",
        f"--data.init_args.prompts={latin}": f"{latin}: byte 2 is not UTF-8",
        f"--model.init_args.teacher={tmp_path}": "no pipeline directory",
        "--model.init_args.steps=0": "steps: 0",
    }.items():
        assert message in refusal(capsys, command(tmp_path / "new", option))
    assert not (tmp_path / "new").exists()


def test_parquet_with_several_noises_per_prompt_and_truncated_prompts(command, tmp_path, capsys):
    prompts = ["digit 7", None, "grüße ☃\n" * 30, "", "capital A"]
    pq.write_table(pa.table({"id": range(5), "words": prompts, "url": prompts}), tmp_path / "prompts.parquet")
    change = {"prompts": str(tmp_path / "prompts.parquet"), "column": "words", "repeat": 5, "pairs": "null"}
    words = command(tmp_path / "set", *(f"--data.init_args.{name}={value}" for name, value in change.items()))
    main(words)
    shown = capsys.readouterr().err
    assert "prompts.parquet: 3 prompts, 2 blank ones skipped" in shown
    assert "diffgan: 5 pairs: prompt truncated to 16 tokens" in shown
    read, manifest = PairSet(tmp_path / "set").read(range(15)), Manifest.read(open_store(tmp_path / "set"))
    assert read.prompt == [prompt for prompt in (prompts[0], prompts[2].strip(), prompts[4]) for _ in range(5)]
    assert read.seed.tolist() == list(range(10, 25)) and len(read.latent.flatten(1).unique(dim=0)) == 15
    assert [header(manifest.file(tmp_path / "set", shard))["truncated"] for shard in range(2)] == [3, 2]
    message = refusal(capsys, [*words, "--data.init_args.pairs=15", "--data.init_args.repeat=1"])
    assert "another pair set: prompts_digest is" in message and "x5' there" in message


def test_a_set_of_a_text_file_keeps_its_digest(unbroken):
    text = "capital A in red\ndigit 7 on cream\ngrüße ☃"
    assert Manifest.read(open_store(unbroken)).prompts_digest == blake2b(text.encode(), digest_size=16).hexdigest()


def header(shard: Path) -> dict:
    with safe_open(shard, framework="pt") as archive:
        return json.loads(archive.metadata()["diffgan"])


def test_two_processes_make_the_same_bytes(unbroken, command, tmp_path):
    together = tmp_path / "together"
    assert run_on_two_processes(command(together, "--trainer.devices=2", "--trainer.strategy=ddp")) == [0, 0]
    assert contents(together) == contents(unbroken)


def test_the_progress_bar_of_lightning_is_off(command, tmp_path, capfd):
    words = command(tmp_path / "set")
    config = yaml.safe_load(Path(words[2]).read_text())
    writer = {"class_path": "callbacks.pair_writer.PairWriter", "init_args": writer_settings(config)}
    config["trainer"]["callbacks"] = [writer]  # without PairProgress
    Path(words[2]).write_text(yaml.safe_dump(config))
    main(words)
    shown = "".join(capfd.readouterr())
    assert "Predicting" not in shown and "/89" not in shown


def test_a_refusal_stops_every_process(command, tmp_path):
    main(command(tmp_path / "set"))
    before = contents(tmp_path / "set")
    words = command(tmp_path / "set", "--trainer.devices=2", "--trainer.strategy=ddp", "--model.init_args.guidance=9")
    errors = tmp_path / "errors.txt"
    assert run_on_two_processes(words, errors) == [1, 1]
    assert contents(tmp_path / "set") == before
    (line,) = [line for line in errors.read_text().splitlines() if "diffgan: error:" in line]
    assert line.startswith("diffgan: error:") and "guidance is 3.0 there and 9.0 here" in line


def test_the_first_process_of_a_trainer_that_refuses_prints_why(capsys):
    strategy = SimpleNamespace(root_device="cpu", reduce=lambda rank, reduce_op: 1, barrier=lambda: None)
    for rank, printed in ((0, ""), (1, "diffgan: error: mine\n"), (2, "")):
        trainer = SimpleNamespace(world_size=3, global_rank=rank, strategy=strategy)
        with pytest.raises(SystemExit, match="1"):
            stop_together(trainer, UserError("mine") if rank else None)
        assert capsys.readouterr().err == printed
