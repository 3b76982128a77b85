"""The verb `sweep`: rows and seeds, one common checkpoint, resuming, and what is refused."""

import json
import os
import shutil
import signal
import sys
import time
from itertools import chain
from multiprocessing.context import ForkProcess
from pathlib import Path

import pytest
import torch
import yaml

from diffgan.__main__ import main
from diffgan.cli.sweeps import child
from diffgan.cli.sweeps.configuration import configuration
from diffgan.cli.sweeps.inputs import input_digests
from diffgan.cli.sweeps.sweep import sweep
from diffgan.cli.sweeps.table_file import read_table
from diffgan.cli.sweeps.tasks import Sweep, run_words, tasks_of
from diffgan.cli.tables.markdown import markdown
from diffgan.cli.tables.swept import swept_grid
from diffgan.errors import UserError
from diffgan.storage.digests import digest
from tests.processes import SERVER, start
from tests.runs import shipped_config, write

ROWS = {"mse": {"title": "MSE"}, "huber": {"title": "pseudo-Huber"}}


@pytest.fixture
def table(tmp_path, monkeypatch, tiny_pipeline, pairs):
    """A table of two losses in an empty folder; a training takes seconds."""
    base = shipped_config("glyphs/distill")
    monkeypatch.chdir(tmp_path)
    base["trainer"] |= {"accelerator": "cpu", "val_check_interval": 1, "enable_progress_bar": False}
    callbacks = base["trainer"]["callbacks"]
    for name in ("health", "samples", "evaluation", "progress"):
        callbacks.pop(name)
    callbacks["checkpoint"]["init_args"]["every_images"] = 8
    arguments = base["model"]["init_args"]
    arguments |= {"teacher": str(tiny_pipeline), "images": 24, "warmup_images": 8, "cooldown_images": 8}
    arguments |= {"regression": {"class_path": "diffgan.losses.regression.MSE"}}
    arguments["adversarial"]["init_args"]["starts_at_images"] = 16
    base["data"]["init_args"] |= {"folder": str(pairs), "batch_size": 8, "validation_pairs": 8}
    write(tmp_path / "base.yaml", base)
    write(tmp_path / "alone.yaml", {"model": {"init_args": {"adversarial": None}}})
    huber = {"class_path": "diffgan.losses.regression.PseudoHuber"}
    write(tmp_path / "huber.yaml", {"model": {"init_args": {"regression": huber}}})
    rows = {key: row | {"configs": ["huber.yaml"] if key == "huber" else []} for key, row in ROWS.items()}
    content = {"title": "Losses", "configs": ["base.yaml", "alone.yaml"], "seeds": [0], "rows": rows}
    write(tmp_path / "losses.yaml", content)
    return tmp_path / "losses.yaml"


def run(words):
    """Exit code of `diffgan sweep ...` in a new process, as its trainings are forked from it."""
    process = start(["sweep", *map(str, words)])
    process.join(180)
    return process.exitcode


def records(folder="losses"):
    files = sorted(Path("runs/tables/glyphs", folder, "records").glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


@pytest.mark.timeout(300)
def test_every_row_is_run_once(table):
    assert run([table, "--row", "mse"]) == 0
    files = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*") if file.is_file()}
    (written,) = (file for file in files if file.name == "table.md")
    assert "| MSE | 0." in written.read_text() and "| pseudo-Huber | not measured |" in written.read_text()
    content = yaml.safe_load(table.read_text())
    assert run([write(table, content | {"seeds": [0, 1]}), "--row", "mse"]) == 0
    made = records()
    assert set(made) == {"mse-seed-0", "mse-seed-1"}
    for seed, record in enumerate(made.values()):
        assert (record["name"], record["stage"], record["images_seen"]) == ("MSE", "test", 24)
        assert record["config"]["seed_everything"] == record["config"]["data"]["init_args"]["seed"] == seed
        assert record["training_seconds"] > 0
    assert len({record["metrics"]["validation/mse"] for record in made.values()}) == 2
    del files[written]
    assert all(file.stat().st_mtime_ns == before for file, before in files.items())  # what was done is skipped


@pytest.mark.timeout(600)
def test_rows_of_a_seed_begin_with_one_checkpoint(table, tmp_path):
    content = yaml.safe_load(table.read_text())
    write(tmp_path / "begin.yaml", {"model": {"init_args": {"images": 16, "cooldown_images": 0, "adversarial": None}}})
    rows = {"alone": {"title": "alone", "configs": ["alone.yaml"]}, "adversarial": {"title": "adversarial"}}
    write(table, content | {"configs": ["base.yaml"], "start": ["begin.yaml"], "seeds": [0], "rows": rows})
    assert run([table]) == 0
    folder = Path("runs/tables/glyphs/losses")
    begun = {
        name: torch.load(folder / name / "seed-0" / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("start", *rows)
    }
    assert [begun[name]["images_seen"] for name in ("start", *rows)] == [16, 24, 24]
    assert [any(k.startswith("discriminator.") for k in c["state_dict"]) for c in begun.values()] == [
        False,
        False,
        True,
    ]
    curves = (folder / "alone" / "seed-0").glob("events.*")
    assert list(curves) and set(records()) == {"alone-seed-0", "adversarial-seed-0"}
    made = records()
    assert made["adversarial-seed-0"]["config"]["model"]["init_args"]["images"] == 24
    starts = {record["start"]["digest"] for record in made.values()}
    assert starts == {digest(folder / "start" / "seed-0" / "checkpoints" / "last.ckpt")}
    _refuses_another_start(table, tmp_path, folder)


def _refuses_another_start(table, tmp_path, folder):
    begin = (tmp_path / "begin.yaml").read_text()
    errors = tmp_path / "errors"
    (tmp_path / "begin.yaml").write_text(begin.replace("16", "8"))
    assert "images was 16 and is 8 now" in _error(errors, table)
    shutil.rmtree(folder / "start")
    assert "began with another one: model.init_args.images was 16 and is 8 now" in _error(errors, table)
    (tmp_path / "begin.yaml").write_text(begin)
    other = folder / "records" / "alone-seed-0.json"
    record = json.loads(other.read_text())
    record["start"]["digest"] = "0" * 32
    other.write_text(json.dumps(record))
    (folder / "records" / "adversarial-seed-0.json").unlink()
    shutil.rmtree(folder / "adversarial")
    assert f"{other}: its training began with another checkpoint (digest {'0' * 32})" in _error(errors, table)
    assert set(records()) == {"alone-seed-0"} and not (folder / "adversarial").exists()


def _error(errors, table):
    """The last line that a sweep which fails prints."""
    process = SERVER.Process(target=_with_errors, args=(errors, ["sweep", str(table)]))
    process.start()
    process.join(180)
    assert process.exitcode == 1
    return errors.read_text().splitlines()[-1]


def refused(words, capsys):
    """The one line of a command that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    (error,) = capsys.readouterr().err.strip().splitlines()
    return error


@pytest.fixture
def task(table):
    """The first row, as if it had been run."""
    asked = Sweep(read_table(table), "glyphs")
    task = tasks_of(asked)[0]
    config = configuration("test", run_words(asked, task))
    made = {"metrics": {"validation/mse": 0.1}, "config": config, "inputs": input_digests(config)}
    task.record.parent.mkdir(parents=True)
    task.record.write_text(json.dumps(made))
    return task


def test_a_changed_configuration_is_refused_and_nothing_overwritten(table, task, tmp_path, capsys):
    main(["sweep", str(table), "--plan"])
    assert "1 of 2" in capsys.readouterr().out
    before = {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}
    adversarial = yaml.safe_load((tmp_path / "base.yaml").read_text())["model"]["init_args"]["adversarial"]
    for key, value, line in (
        ("images", 32, "images was 24 and is 32 now"),
        ("adversarial", adversarial, "adversarial was None and is AdversarialTraining now"),
    ):
        write(tmp_path / "more.yaml", {"model": {"init_args": {key: value}}})
        error = refused(["sweep", str(table), "-c", "more.yaml"], capsys)
        assert line in error and task.record.name in error
    assert before == {file: file.read_bytes() for file in Path("runs").rglob("*") if file.is_file()}


def test_a_record_of_other_files_is_refused(table, task, tmp_path, capsys):
    """The same paths hold other pairs and another teacher than when the row was run."""
    made = json.loads(task.record.read_text())
    assert set(made["inputs"]) == {"teacher", "pairs"}
    for name in made["inputs"]:
        task.record.write_text(json.dumps(made | {"inputs": made["inputs"] | {name: "0" * 32}}))
        error = refused(["sweep", str(table)], capsys)
        assert f"{task.record}: was made with other files: {name}: digest {'0' * 32} there" in error
    without = {key: value for key, value in made.items() if key != "inputs"}
    task.record.write_text(json.dumps(without))  # of an earlier version
    main(["sweep", str(table), "--plan"])
    assert "1 of 2" in capsys.readouterr().out


def test_a_scale_without_rows_is_refused(table, capsys):
    content = yaml.safe_load(table.read_text())
    rows = {key: row | {"scales": ["glyphs", "sd15"]} for key, row in content["rows"].items()}
    write(table, content | {"rows": rows})
    error = refused(["sweep", str(table), "--scale", "sdxl"], capsys)
    assert "--scale: table losses has no rows at sdxl; it has glyphs, sd15" in error


def test_a_gpu_is_not_used_before_processes_are_forked(table, monkeypatch, capsys):
    """CUDA that was initialised here would fail in them. There is none, so using it would fail here too."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    main(["sweep", str(table), "--plan"])
    assert "0 of 2" in capsys.readouterr().out
    assert "there are 1 CUDA devices" in refused(["sweep", str(table), "--device", "cuda:1"], capsys)


@pytest.mark.slow
def test_a_row_that_fails_does_not_stop_the_others(table, tmp_path):
    write(tmp_path / "huber.yaml", {"data": {"init_args": {"folder": "not/there"}}})
    errors = tmp_path / "errors"
    process = SERVER.Process(target=_with_errors, args=(errors, ["sweep", str(table)]))
    process.start()
    process.join(180)
    assert process.exitcode == 1 and set(records()) == {"mse-seed-0"}
    lines = errors.read_text().splitlines()
    assert lines[-1].startswith("diffgan: error: sweep: failed: huber, seed 0")
    assert any("not/there" in line for line in lines) and not any("Traceback" in line for line in lines)


def _with_errors(file, words):
    os.dup2(os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), sys.stderr.fileno())
    main(words)


@pytest.mark.timeout(300)
def test_an_interrupted_row_ends_as_an_uninterrupted_one(table, tmp_path):
    write(tmp_path / "long.yaml", {"model": {"init_args": {"images": 96}}})
    words = [str(table), "--row", "mse", "-c", "long.yaml"]
    _interrupt(words, Path("runs/tables/glyphs/losses/mse/seed-0/checkpoints/last.ckpt"))
    assert not records()
    assert run(words) == 0
    whole = table.with_name("whole.yaml")
    whole.write_text(table.read_text())
    assert run([whole, *words[1:]]) == 0
    (resumed,), (once,) = records().values(), records("whole").values()
    assert resumed["images_seen"] == once["images_seen"] == 96
    assert resumed["metrics"] == once["metrics"]
    assert "training_seconds" in once and "training_seconds" not in resumed  # of a part only


def test_a_row_that_began_with_another_length_is_refused(table, tmp_path, capsys):
    write(tmp_path / "long.yaml", {"model": {"init_args": {"images": 4000}}})
    words = ["sweep", str(table), "--row", "mse", "-c", "long.yaml"]
    _interrupt(words[1:], checkpoint := Path("runs/tables/glyphs/losses/mse/seed-0/checkpoints/last.ckpt"))
    before = checkpoint.read_bytes()
    write(tmp_path / "long.yaml", {"model": {"init_args": {"images": 4008}}})
    error = refused(words, capsys)
    assert "images was 4000 and is 4008 now" in error and "remove runs/tables/glyphs/losses/mse/seed-0" in error
    assert checkpoint.read_bytes() == before


def _interrupt(words, checkpoint):
    """Begin a sweep, and end it after its first checkpoint."""
    process = start(["sweep", *words])
    while not checkpoint.is_file():
        assert process.is_alive()
        time.sleep(0.05)
    process.terminate()
    process.join(60)
    assert process.exitcode == 128 + signal.SIGTERM


def test_records_of_other_seeds_are_no_part_of_the_table(table):
    folder = Sweep(read_table(table), "glyphs").records
    folder.mkdir(parents=True)
    for seed, value in ((0, 0.5), (7, 100.0)):
        record = {"metrics": {"validation/mse": value}, "stage": "test"}
        (folder / f"mse-seed-{seed}.json").write_text(json.dumps(record))
    text = "\n".join(markdown(swept_grid(read_table(table), "glyphs", folder)))
    assert "| MSE | 0.5000 |" in text and "100" not in text


def test_an_unknown_column_is_refused_before_any_run(table, capsys):
    write(table, yaml.safe_load(table.read_text()) | {"columns": {"glyphs": ["validation/mse", "fd_of_nothing"]}})
    folder = Sweep(read_table(table), "glyphs").records
    folder.mkdir(parents=True)
    (folder / "mse-seed-0.json").write_text(json.dumps({"metrics": {"validation/mse": 0.5}, "stage": "test"}))
    with pytest.raises(SystemExit):
        main(["sweep", str(table), "--row", "huber"])
    assert "columns.glyphs" in capsys.readouterr().err and len(list(Path("runs").rglob("*"))) == 5


def test_a_killed_command_is_reported(capsys, monkeypatch):
    monkeypatch.setattr(child, "main", lambda words: os.kill(os.getpid(), signal.SIGKILL))
    assert not child.run_in_child(["fit"])
    assert "`diffgan fit` was killed by signal 9" in capsys.readouterr().err


def test_an_interruption_before_a_command_starts_is_not_lost(monkeypatch):
    def start(process):
        os.kill(os.getpid(), signal.SIGTERM)
        begin(process)

    begin = ForkProcess.start
    monkeypatch.setattr(ForkProcess, "start", start)
    monkeypatch.setattr(child, "main", lambda words: time.sleep(60))
    with pytest.raises(SystemExit) as ended:
        child.run_in_child(["fit"])
    assert ended.value.code == 128 + signal.SIGTERM


def test_parts_share_all_rows(table):
    asked = Sweep(read_table(table), "glyphs")
    whole = [task.name for task in tasks_of(asked)]
    parts = [[task.name for task in tasks_of(asked, (k, 2))] for k in (1, 2)]
    assert sorted(chain(*parts)) == sorted(whole) and all(parts)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--part", "3/2"], "--part: 3/2 is no part"),
        (["--part", "x"], "--part: x is no part"),
        (["--row", "mes"], "--row: mes is none of huber, mse"),
        (["-c", "absent.yaml"], "absent.yaml"),
    ],
)
def test_a_wrong_option_is_one_line(table, capsys, words, complaint):
    with pytest.raises(SystemExit) as ended:
        main(["sweep", str(table), *words])
    assert ended.value.code != 0
    error = capsys.readouterr().err
    assert complaint in error and "Traceback" not in error


def test_the_plan_says_what_is_missing(table, tmp_path, capsys):
    write(tmp_path / "elsewhere.yaml", {"data": {"init_args": {"folder": "pairs/none"}}})
    main(["sweep", str(table), "--plan", "-c", "elsewhere.yaml"])
    out = capsys.readouterr().out
    assert (
        "0 of 2" in out
        and "pairs/none: the data of a run" in out
        and "24 images, 0 of them adversarial; PseudoHuber" in out
    )
    assert not Path("runs").exists()


def test_a_broken_record_is_refused(table):
    record = Path("runs/tables/glyphs/losses/records/mse-seed-0.json")
    record.parent.mkdir(parents=True)
    record.write_text("{")
    with pytest.raises(UserError, match="is no record"):
        sweep(Path(table))
