"""Tables of records: rows, real images, several seeds, records of before."""

import json
from pathlib import Path

import pytest

from diffgan.cli.tables.compare import tables
from diffgan.errors import UserError
from diffgan.evaluation.protocols.glyphs import glyph_protocol


def record(path, name, protocol="p", **metrics):
    path.write_text(json.dumps({"name": name, "metrics": metrics, "protocol": "glyphs", "protocol_digest": protocol}))
    return path


def test_table_has_a_row_a_record_and_the_real_images(tmp_path, capsys):
    metrics = {
        "evaluation/fd_efficientnet": 60.04,
        "evaluation/fd_efficientnet_floor": 50.0,
        "evaluation/kid_efficientnet": 0.0123,
    }
    metrics |= {"evaluation/reading": 0.8, "evaluation/reading_real": 0.9}
    records = [record(tmp_path / "a.json", "teacher", **metrics), record(tmp_path / "b.json", "student", **metrics)]
    tables(records, tmp_path / "deep" / "table.md")
    text = capsys.readouterr().out
    assert text == (tmp_path / "deep" / "table.md").read_text()
    heads, _, first, second, real = text.splitlines()[:5]
    assert heads == "|  | network calls | FD (EfficientNet) | KID x 1000 | reading |"
    assert first == "| teacher | 1 | 60.0 | 12.3 | 0.800 |" and second.startswith("| student ")
    assert real == "| real images |  | 50.0 |  | 0.900 |"


def test_records_from_before_a_metric_leave_its_cells_empty(tmp_path, capsys):
    old = {"evaluation/fd_efficientnet": 60.0}
    new = old | {
        "evaluation/fd_efficientnet_grain": 40.0,
        "evaluation/fd_efficientnet_grain_floor": 20.0,
        "evaluation/grain": 8.0,
    }
    tables([record(tmp_path / "a.json", "a", **old), record(tmp_path / "b.json", "b", **new)])
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "| a | 1 | 60.0 |  |",
        "| b | 1 | 60.0 | 40.0 |",
        "| real images |  |  | 20.0 |",
    ]
    other = record(tmp_path / "c.json", "c", **new | {"evaluation/grain": 4.0})
    with pytest.raises(UserError, match="more grain"):
        tables([tmp_path / "b.json", other])


def test_runs_of_one_name_are_one_row_with_their_range(tmp_path, capsys):
    values = {"a": (10.0, 20.0, 60.0), "b": (5.0,)}
    tables(
        [
            record(tmp_path / f"{name}{i}.json", name, **{"evaluation/fd_efficientnet": value})
            for name in values
            for i, value in enumerate(values[name])
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| a | 1 | 30.0 (10.0 to 60.0) |", "| b | 1 | 5.0 |"]


def test_metrics_of_photographs_have_no_row_of_real_images(tmp_path, capsys):
    tables([record(tmp_path / "a.json", "student", **{"evaluation/fid": 9.294, "evaluation/clip_score": 0.3099})])
    heads, _, row, *rest = capsys.readouterr().out.splitlines()
    assert heads == "|  | network calls | FID | CLIP score |" and row == "| student | 1 | 9.29 | 0.310 |"
    assert not any("real images" in line for line in rest)


def test_what_cannot_be_compared_is_refused(tmp_path):
    a, b = record(tmp_path / "a.json", "a"), record(tmp_path / "b.json", "b", protocol="q")
    (tmp_path / "c.json").write_text("{}")
    for records, message in (([], "at least one"), ([a, b], "b.json and"), ([tmp_path / "c.json"], "c.json")):
        with pytest.raises(UserError, match=message):
            tables(records)


def test_a_run_is_named_once(tmp_path, capsys):
    """Twice the same file would be a range of nothing, and bold."""
    file = record(tmp_path / "a.json", "a", **{"evaluation/reading": 0.5})
    with pytest.raises(UserError, match="is named twice as a run of one row"):
        tables([file, file])
    assert capsys.readouterr().out == ""


def test_records_of_before_give_the_table_of_before(tmp_path):
    """Records with the metric names of version 0.1, which are in the repository; the last row had another name."""
    results = Path("configs/glyphs/results")
    names = ("teacher-50", "teacher-1", "student-regression", "student")
    tables([results / f"{name}-glyphs-2k.json" for name in names], tmp_path / "table.md")
    assert (tmp_path / "table.md").read_text() == Path("tests/data/v0.1/table.md").read_text()


def test_columns_have_the_headings_of_the_protocols_metrics(tmp_path, capsys):
    """A metric that a protocol lists has its column, in the order of the list."""
    protocol = glyph_protocol("glyphs-500")
    columns = [column for metric in protocol.metrics() for column in metric.columns]
    metrics = {f"evaluation/{column.key}": 1.0 for column in columns}
    tables([record(tmp_path / "a.json", "a", **metrics)])
    heads = capsys.readouterr().out.splitlines()[0].strip("| ").split(" | ")
    assert heads == ["network calls", *(column.heading for column in columns)]
