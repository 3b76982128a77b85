"""Records that come from elsewhere, and what is drawn from them: one line that names the file and the value."""

import json

import pytest

from diffgan.cli.sweeps import tasks
from diffgan.errors import UserError
from diffgan.storage.json_files import MAX_BYTES
from tests.pair_sets import refusal

DEEP = "[" * 100_000 + "]" * 100_000
GOOD = {"name": "a", "stage": "test", "metrics": {"evaluation/fd": 1.0}, "network_calls": 1, "images_seen": 10}
BROKEN = [
    ({"metrics": {"evaluation/fd": "good"}}, 'metrics.evaluation/fd is "good" and must be a number'),
    ({"metrics": {"evaluation/fd": None}}, "metrics.evaluation/fd is null and must be a number"),
    ({"metrics": {"evaluation/fd": [1.0]}}, "metrics.evaluation/fd is [1.0] and must be a number"),
    ({"metrics": {"evaluation/fd": True}}, "metrics.evaluation/fd is true and must be a number"),
    ({"metrics": {"evaluation/fd": 10**400}}, "metrics.evaluation/fd is 1000"),
    ({"metrics": [1]}, "it has no mapping `metrics`"),
    ({"name": ["a"]}, 'name is ["a"] and must be a text'),
    ({"stage": {}}, "stage is {} and must be a text"),
    ({"protocol_digest": 3}, "protocol_digest is 3 and must be a text"),
    ({"network_calls": "one"}, 'network_calls is "one" and must be a number'),
    ({"images_seen": [3]}, "images_seen is [3] and must be a number"),
]
TEXTS = [
    (DEEP, "JSON nested too deeply"),
    ("[]", "no JSON object"),
    ("a text", "is no record"),
    ("", "is no record"),
    ('{"name": "\\udc00"}', "surrogates"),
    (" " * (MAX_BYTES + 1), "more than 16 MB of JSON"),
]
ALL = [(json.dumps(GOOD | changes), message) for changes, message in BROKEN] + TEXTS


@pytest.mark.parametrize("content, message", ALL, ids=[message for _, message in ALL])
def test_tables_and_sweeps_name_the_file_and_the_value(content, message, tmp_path, capsys):
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    file, output = tmp_path / "metrics.json", tmp_path / "table.md"
    file.write_text(content)
    line = refusal(capsys, ["tables", str(tmp_path / "good.json"), str(file), "--output", str(output)])
    assert f"{file}: " in line and message in line and not output.exists()
    with pytest.raises(UserError) as refused:
        tasks.read_record(file)
    assert str(file) in str(refused.value) and message in str(refused.value)


@pytest.mark.parametrize("content, message", ALL, ids=[message for _, message in ALL])
def test_render_names_them_and_changes_no_page(content, message, tmp_path, capsys):
    (tmp_path / "metrics.json").write_text(content)
    table = {"columns": ["fd"], "rows": [{"title": "a", "records": [str(tmp_path / "metrics.json")]}]}
    (tmp_path / "table.yaml").write_text(json.dumps(table))
    page = tmp_path / "README.md"
    page.write_text(f"<!-- table: {tmp_path}/table.yaml -->\n<!-- end of table -->\n")
    before = page.read_text()
    assert message in refusal(capsys, ["render", str(page)])
    assert page.read_text() == before


def test_a_record_that_is_missing_is_not_an_error_for_a_sweep(tmp_path):
    assert tasks.read_record(tmp_path / "metrics.json") is None
    (tmp_path / "metrics.json").write_text(json.dumps(GOOD))
    assert tasks.read_record(tmp_path / "metrics.json")["metrics"] == GOOD["metrics"]
