import json

import pytest

from diffgan.cli.tables import tables
from diffgan.errors import UserError


def record(path, name, protocol="p", **metrics):
    path.write_text(json.dumps({"name": name, "metrics": metrics, "protocol": "glyphs", "protocol_digest": protocol}))
    return path


def test_table_has_a_row_a_record_and_the_real_pictures(tmp_path, capsys):
    figures = {"judge/fd_efficientnet": 60.04, "judge/fd_efficientnet_floor": 50.0, "judge/kid_efficientnet": 0.0123}
    figures |= {"judge/reading": 0.8, "judge/reading_real": 0.9}
    records = [record(tmp_path / "a.json", "teacher", **figures), record(tmp_path / "b.json", "student", **figures)]
    tables(records, tmp_path / "deep" / "table.md")
    text = capsys.readouterr().out
    assert text == (tmp_path / "deep" / "table.md").read_text()
    heads, _, first, second, real = text.splitlines()[:5]
    assert heads == "|  | network calls | FD (EfficientNet) | KID x 1000 | reading |"
    assert first == "| teacher | 1 | 60.0 | 12.3 | 0.800 |" and second.startswith("| student ")
    assert real == "| real pictures |  | 50.0 |  | 0.900 |"


def test_records_from_before_a_figure_leave_its_cells_empty(tmp_path, capsys):
    old = {"judge/fd_efficientnet": 60.0}
    new = old | {"judge/fd_efficientnet_grain": 40.0, "judge/fd_efficientnet_grain_floor": 20.0, "judge/grain": 8.0}
    tables([record(tmp_path / "a.json", "a", **old), record(tmp_path / "b.json", "b", **new)])
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "| a | 1 | 60.0 |  |",
        "| b | 1 | 60.0 | 40.0 |",
        "| real pictures |  |  | 20.0 |",
    ]
    other = record(tmp_path / "c.json", "c", **new | {"judge/grain": 4.0})
    with pytest.raises(UserError, match="more grain"):
        tables([tmp_path / "b.json", other])


def test_runs_of_one_name_are_one_row_with_their_range(tmp_path, capsys):
    values = {"a": (10.0, 20.0, 60.0), "b": (5.0,)}
    tables(
        [
            record(tmp_path / f"{name}{i}.json", name, **{"judge/fd_efficientnet": value})
            for name in values
            for i, value in enumerate(values[name])
        ]
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:4] == ["| a | 1 | 30.0 (10.0 to 60.0) |", "| b | 1 | 5.0 |"]


def test_figures_of_photographs_have_no_row_of_real_pictures(tmp_path, capsys):
    tables([record(tmp_path / "a.json", "student", **{"judge/fid": 9.294, "judge/clip_score": 0.3099})])
    heads, _, row, *rest = capsys.readouterr().out.splitlines()
    assert heads == "|  | network calls | FID | CLIP score |" and row == "| student | 1 | 9.29 | 0.310 |"
    assert not any("real pictures" in line for line in rest)


def test_what_cannot_be_compared_is_refused(tmp_path):
    a, b = record(tmp_path / "a.json", "a"), record(tmp_path / "b.json", "b", protocol="q")
    (tmp_path / "c.json").write_text("{}")
    for records, message in (([], "at least one"), ([a, b], "b.json and"), ([tmp_path / "c.json"], "c.json")):
        with pytest.raises(UserError, match=message):
            tables(records)
