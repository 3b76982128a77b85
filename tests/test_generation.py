"""Pair generation through the command, up to and including its violent ends."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors import safe_open

from datamodules.prompts import Prompts
from diffgan.__main__ import main
from diffgan.errors import UserError
from diffgan.pairs import Manifest, PairSet
from diffgan.teacher import Teacher
from tests.processes import SERVER, run_on_two_processes

PAIRS, SHARD, BATCH = 44, 8, 3


@pytest.fixture(scope="module")
def command(tiny_pipeline, tmp_path_factory):
    """command(folder, *more): the words after `diffgan` that make a small set in `folder`."""
    tmp_path = tmp_path_factory.mktemp("command")
    (tmp_path / "prompts.txt").write_text("capital A in red\n\ndigit 7 on cream\r\n  grüße ☃ \n", encoding="utf-8")

    def words(folder: Path, *more: str) -> list[str]:
        config = yaml.safe_load(Path("configs/glyphs/pairs.yaml").read_text())
        config["trainer"] |= {"default_root_dir": str(folder), "accelerator": "cpu"}
        config["trainer"]["callbacks"][0]["init_args"] |= {"folder": str(folder), "shard_size": SHARD}
        config["model"]["init_args"] |= {"teacher": str(tiny_pipeline), "steps": 2}
        numbers = {"pairs": PAIRS, "batch_size": BATCH, "seed_base": 10}
        config["data"]["init_args"] |= {"prompts": str(tmp_path / "prompts.txt"), **numbers}
        file = tmp_path / "pairs.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["predict", "-c", str(file), *more]

    return words


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a set but the record of the run's configuration."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix != ".yaml"}


def refusal(capsys, words) -> str:
    """The one line with which the command refuses."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(words)
    assert exit.value.code == 1
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("diffgan: error:"))


def test_numbers_out_of_range_are_refused(tmp_path):
    prompts = tmp_path / "none.txt"
    for pairs, seed_base, batch_size, message in (
        (0, 0, 1, "pairs 0"),
        (1, 0, 0, "batch_size 0"),
        (1, 2**32, 1, "seed_base 4294967296"),
        (1, 0, 1, "none.txt: No such file"),
    ):
        with pytest.raises(UserError, match=message):
            Prompts(prompts, pairs, seed_base, batch_size).setup("predict")


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory):
    """A set made in one go, which nobody may change."""
    folder = tmp_path_factory.mktemp("pairs") / "unbroken"
    main(command(folder))
    return folder


@pytest.fixture
def whole(unbroken, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(unbroken, tmp_path / "whole")


def test_makes_the_set_that_the_teacher_would(unbroken, tiny_pipeline):
    read = PairSet(unbroken).read(range(PAIRS))
    assert read.seed.tolist() == list(range(10, 10 + PAIRS))
    assert read.prompt == [["capital A in red", "digit 7 on cream", "grüße ☃"][i % 3] for i in range(PAIRS)]
    assert sorted(contents(unbroken)) == ["manifest.json", *(f"pairs-{i:05d}-of-00006.safetensors" for i in range(6))]
    assert verify(unbroken, Teacher.from_pretrained(str(tiny_pipeline)), sample=10) < 2e-3


def test_verify_sees_another_teacher(unbroken, other_pipeline):
    assert verify(unbroken, Teacher.from_pretrained(str(other_pipeline)), sample=4) > 0.05


def test_running_it_again_changes_nothing(whole, command, capsys):
    before = {file: file.stat().st_mtime_ns for file in whole.glob("*.safetensors")}
    main(command(whole))
    assert before == {file: file.stat().st_mtime_ns for file in whole.glob("*.safetensors")}
    assert "all 44 pairs are there" in capsys.readouterr().err


def test_missing_shards_are_made_again_and_leftovers_swept(whole, unbroken, command, capsys):
    for shard in (0, 4):
        (whole / f"pairs-{shard:05d}-of-00006.safetensors").unlink()
    (whole / "pairs-00000-of-00006.safetensors.4711.partial").write_bytes(b"half")
    main(command(whole))
    assert contents(whole) == contents(unbroken)
    assert "44/44 pairs" in capsys.readouterr().err


def test_what_differs_is_refused_by_name_and_nothing_is_overwritten(whole, command, other_pipeline, capsys, tmp_path):
    before = {file.name: file.read_bytes() for file in whole.iterdir()}
    other = tmp_path / "other.txt"
    other.write_text("digit 8\n")
    for option, field in {
        f"--model.init_args.teacher={other_pipeline}": "teacher_digest",
        "--model.init_args.guidance=1.0": "guidance",
        "--data.init_args.pairs=45": "pairs",
        f"--data.init_args.prompts={other}": "prompts_digest",
    }.items():
        assert f"manifest.json: another pair set: {field} is" in refusal(capsys, command(whole, option))
    assert {file.name: file.read_bytes() for file in whole.iterdir()} == before


def test_a_truncated_shard_is_refused_and_kept(whole, command, capsys):
    shard = whole / "pairs-00003-of-00006.safetensors"
    os.truncate(shard, 1000)
    assert f"{shard}: shard is damaged" in refusal(capsys, command(whole))
    assert shard.stat().st_size == 1000


def test_bad_input_is_refused_before_anything_is_made(command, tmp_path, capsys):
    empty, latin = tmp_path / "empty.txt", tmp_path / "latin.txt"
    empty.write_text("\n  \n")
    latin.write_bytes("grün".encode("latin-1"))
    for option, message in {
        f"--data.init_args.prompts={empty}": f"{empty}: no prompt in it",
        f"--data.init_args.prompts={latin}": f"{latin}: byte 2 is not UTF-8",
        f"--model.init_args.teacher={tmp_path}": "no pipeline directory",
        "--model.init_args.steps=0": "steps: 0",
    }.items():
        assert message in refusal(capsys, command(tmp_path / "new", option))
    assert not (tmp_path / "new").exists()


def test_parquet_with_several_noises_a_prompt_and_prompts_cut(command, tmp_path, capsys):
    prompts = ["digit 7", None, "grüße ☃\n" * 30, "", "capital A"]
    pq.write_table(pa.table({"id": range(5), "words": prompts, "url": prompts}), tmp_path / "prompts.parquet")
    change = {"prompts": str(tmp_path / "prompts.parquet"), "column": "words", "repeat": 5, "pairs": "null"}
    words = command(tmp_path / "set", *(f"--data.init_args.{name}={value}" for name, value in change.items()))
    main(words)
    shown = capsys.readouterr().err
    assert "prompts.parquet: 3 prompts, 2 blank ones skipped" in shown
    assert "diffgan: 5 pairs: prompt cut, it had more than 16 tokens" in shown
    read, manifest = PairSet(tmp_path / "set").read(range(15)), Manifest.read(tmp_path / "set")
    assert read.prompt == [prompt for prompt in (prompts[0], prompts[2].strip(), prompts[4]) for _ in range(5)]
    assert read.seed.tolist() == list(range(10, 25)) and len(read.latent.flatten(1).unique(dim=0)) == 15
    assert [header(manifest.file(tmp_path / "set", shard))["truncated"] for shard in range(2)] == [3, 2]
    message = refusal(capsys, [*words, "--data.init_args.pairs=15", "--data.init_args.repeat=1"])
    assert "another pair set: prompts_digest is" in message and "x5' there" in message


def test_a_set_of_a_text_file_keeps_its_digest(unbroken):
    text = "capital A in red\ndigit 7 on cream\ngrüße ☃"
    assert Manifest.read(unbroken).prompts_digest == blake2b(text.encode(), digest_size=16).hexdigest()


def header(shard: Path) -> dict:
    with safe_open(shard, framework="pt") as archive:
        return json.loads(archive.metadata()["diffgan"])


def die_at_write(words: list[str], write: int) -> None:
    """Run the command and kill -9 this process between its `write`-th file's bytes and its rename."""
    fsync, calls = os.fsync, iter(range(write))

    def fatal(descriptor):
        fsync(descriptor)
        if next(calls) == write - 1:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fatal
    main(words)


def run_apart(target, *args) -> int:
    """Exit code of a fresh process that runs target(*args)."""
    process = SERVER.Process(target=target, args=args)
    process.start()
    process.join(120)
    return process.exitcode


def test_kill_9_again_and_again_costs_nothing(unbroken, command, tmp_path):
    broken = tmp_path / "broken"
    for write in (1, 3, 2):  # the manifest; then a shard with one before it; then another
        assert run_apart(die_at_write, command(broken), write) == -signal.SIGKILL
        assert list(broken.glob("*.partial"))
    assert 0 < len(list(broken.glob("*.safetensors"))) < 6
    main(command(broken))
    assert contents(broken) == contents(unbroken)


def test_two_runs_on_one_set_are_kept_apart(whole, command, capsys):
    with open(whole / "manifest.json") as manifest:
        fcntl.flock(manifest, fcntl.LOCK_EX)
        assert "another run is writing this pair set" in refusal(capsys, command(whole))
    main(command(whole))


def test_two_processes_make_the_same_bytes(unbroken, command, tmp_path):
    together = tmp_path / "together"
    assert run_on_two_processes(command(together, "--trainer.devices=2", "--trainer.strategy=ddp")) == [0, 0]
    assert contents(together) == contents(unbroken)


def test_a_refusal_stops_every_process(command, tmp_path):
    main(command(tmp_path / "set"))
    before = contents(tmp_path / "set")
    words = command(tmp_path / "set", "--trainer.devices=2", "--trainer.strategy=ddp", "--model.init_args.guidance=9")
    assert run_on_two_processes(words) == [1, 1]
    assert contents(tmp_path / "set") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_ends_with_one_line_and_the_run_goes_on_later(unbroken, command, capsys, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount here")
    try:
        message = refusal(capsys, command(small))
        assert "safetensors: cannot be written: No space left on device" in message
        assert not list(small.glob("*.partial"))
        subprocess.run(["mount", "-o", "remount,size=1m", small], check=True)
        main(command(small))
        assert contents(small) == contents(unbroken)
    finally:
        subprocess.run(["umount", small], check=True)
