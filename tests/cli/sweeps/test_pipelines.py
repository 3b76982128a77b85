"""The verb `sweep` on pipelines: which records are done, and which are of something else."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from diffgan.cli.sweeps.configuration import require_same_row
from diffgan.cli.sweeps.sweep import sweep
from diffgan.errors import UserError
from diffgan.evaluation.protocols.glyphs import glyph_protocol
from diffgan.evaluation.samplers import pipeline_digest
from tests.runs import write

RECORD = Path("runs/tables/glyphs/models/records/student.json")
ROW = {"name": "student", "pipeline": "runs/student", "steps": 1, "guidance": 1}


@pytest.fixture
def table(tmp_path, monkeypatch, tiny_pipeline):
    """A table of one pipeline, whose record is there."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_pipeline, "runs/student")
    write(Path("row.yaml"), ROW)
    rows = {"student": {"title": "student", "pipeline": "row.yaml"}}
    write(Path("models.yaml"), {"title": "Models", "protocol": {"glyphs": "glyphs-500"}, "rows": rows})
    RECORD.parent.mkdir(parents=True)
    pipeline = {"name": "runs/student", "digest": pipeline_digest("runs/student")}
    record = {"name": "student", "metrics": {}, "protocol": "glyphs-500", "pipeline": pipeline}
    RECORD.write_text(json.dumps(record | {"config": {"steps": 1, "guidance": 1, "dtype": "bfloat16"}}))
    return Path("models.yaml")


def _other_settings():
    write(Path("row.yaml"), ROW | {"steps": 2})


def _other_protocol():
    table = Path("models.yaml")
    table.write_text(table.read_text().replace("glyphs-500", "glyphs-2k"))


def _other_weights():
    file = next(Path("runs/student").rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_record_of_the_same_row_is_done(table, capsys):
    sweep(table, plan=True)
    assert "1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_other_settings, "another content of row.yaml"),
        (_other_protocol, "is of protocol glyphs-500, the table's is glyphs-2k"),
        (_other_weights, "other weights than runs/student holds now"),
    ],
)
def test_a_record_of_something_else_is_refused(table, change, complaint):
    before = RECORD.read_bytes()
    change()
    with pytest.raises(UserError, match=complaint) as error:
        sweep(table)
    assert str(RECORD) in str(error.value) and RECORD.read_bytes() == before


def test_a_record_without_its_pipeline_here_is_done(table):
    """Records outlive the weights, e.g. on another machine."""
    shutil.rmtree("runs/student")
    require_same_row(json.loads(RECORD.read_text()), RECORD, "row.yaml")


def test_a_mistake_in_a_row_file_ends_the_sweep_before_it_runs_anything(table):
    RECORD.unlink()
    write(Path("row.yaml"), ROW | {"stesp": 1})
    with pytest.raises(UserError, match="unknown key stesp"):
        sweep(table)


def test_the_plan_names_a_pipeline_that_is_missing(table, capsys):
    RECORD.unlink()
    shutil.rmtree("runs/student")
    sweep(table, plan=True)
    assert "runs/student: which row.yaml names" in capsys.readouterr().out


def test_the_plan_names_what_is_opened_from_the_hub(table, capsys):
    RECORD.unlink()
    lora = {"file": "owner/adapters/lora.safetensors"}
    write(Path("row.yaml"), ROW | {"pipeline": "owner/model", "lora": lora})
    sweep(table, plan=True)
    hub = capsys.readouterr().out.partition("\nhub")[2].splitlines()
    assert [line.strip() for line in hub[:2]] == ["owner/model", "owner/adapters/lora.safetensors"]


def test_a_record_in_another_dtype_than_the_row_says_is_refused(table):
    write(Path("row.yaml"), ROW | {"dtype": "float16"})
    with pytest.raises(UserError, match=r"was made in bfloat16, row.yaml says float16"):
        sweep(table)


def test_a_record_of_another_content_of_the_protocol_is_refused(table):
    record = json.loads(RECORD.read_text()) | {"protocol_digest": "0" * 16}
    RECORD.write_text(json.dumps(record))
    with pytest.raises(UserError, match="another content of protocol glyphs-500"):
        sweep(table)
    RECORD.write_text(json.dumps(record | {"protocol_digest": glyph_protocol("glyphs-500").digest}))
    sweep(table)


def test_a_record_of_other_teacher_images_is_refused(table):
    content = yaml.safe_load(table.read_text())
    write(Path("teacher.yaml"), {"name": "teacher", "pipeline": "glyphs", "steps": 50, "guidance": 3})
    content["rows"]["teacher"] = {"title": "teacher", "pipeline": "teacher.yaml"}
    write(table, content | {"teacher": "teacher"})
    images = {
        "pipeline": {"name": "glyphs", "digest": pipeline_digest("glyphs")},
        "config": {"steps": 50, "guidance": 3},
    }
    RECORD.write_text(json.dumps(json.loads(RECORD.read_text()) | {"teacher_images": images}))
    sweep(table, plan=True, row=["student"])
    write(Path("teacher.yaml"), {"name": "teacher", "pipeline": "glyphs", "steps": 20, "guidance": 3})
    with pytest.raises(UserError, match=r"student.json: was made with another content of teacher.yaml"):
        sweep(table, row=["student"])


def test_the_plan_names_the_weights_of_the_metrics(table, monkeypatch, tmp_path, capsys):
    RECORD.unlink()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    content = {"name": "coco", "captions": "captions.txt", "images": 8, "seed_base": 0, "side": 32, "metrics": ["fid"]}
    content["reference"] = "real"
    write(Path("coco.yaml"), content)
    table.write_text(table.read_text().replace("glyphs-500", "coco.yaml"))
    sweep(table, plan=True)
    missing = capsys.readouterr().out.partition("missing")[2]
    assert str(tmp_path / "torch") in missing and "; for fid" in missing and "captions.txt" in missing
