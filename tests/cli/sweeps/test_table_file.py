"""Table files: what is read, and what is refused."""

from pathlib import Path

import pytest
import yaml

from diffgan.cli.sweeps.table_file import at_scale, read_table
from diffgan.errors import UserError

VALID = {"title": "Losses", "rows": {"mse": {"title": "MSE", "configs": ["mse.yaml"], "paper": {"fid": 1.5}}}}


def written(folder, **changes):
    path = folder / "losses.yaml"
    path.write_text(yaml.safe_dump(VALID | changes))
    return path


def test_a_table_has_what_its_file_says(tmp_path):
    table = read_table(written(tmp_path, seeds=[3, 4], paper={"scale": "sd15", "source": "table 1"}))
    assert (table.name, table.title, table.seeds) == ("losses", "Losses", (3, 4))
    assert table.rows["mse"].configs == ("mse.yaml",) and table.rows["mse"].paper == {"fid": 1.5}
    assert (table.paper.scale, table.commands, table.start) == ("sd15", ("fit", "test"), ())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sedes": [0]}, "sedes is none of"),
        ({"rows": {}}, "rows: must map"),
        ({"rows": {"a": {}}}, "rows.a: title is missing"),
        ({"rows": {"a": {"title": "A", "pipeline": "p.yaml", "configs": ["c.yaml"]}}}, "rows.a: must have one of"),
        ({"rows": {"a": {"title": "A", "paper": {"fid": "low"}}}}, "rows.a.paper: must map metrics to numbers"),
        ({"seeds": [True]}, "seeds: must be a list of whole numbers"),
        ({"seeds": []}, "seeds: must be a list of whole numbers"),
        ({"columns": {"sd14": ["fid"]}}, "columns: must map glyphs, sd15, sdxl"),
        ({"configs": "distill.yaml"}, "configs: must be a list of texts"),
        ({"teacher": "mse"}, "teacher: 'mse' must be the key of a row with a pipeline"),
        ({"commands": ["validate"]}, "commands: must be"),
        ({"paper": {"scale": "sd15"}}, "paper: source is missing"),
        ({"paper": {"scale": "sd14", "source": "table 1"}}, "paper.scale: sd14 is none of glyphs, sd15, sdxl"),
        ({"title": 5}, "title: 5 must be a text"),
        ({"rows": {"a": {"title": None}}}, "rows.a.title: None must be a text"),
        ({"rows": {"a": {"title": "A", "pipeline": ["p.yaml"]}}}, "rows.a.pipeline: .* must be a text"),
        ({"rows": {"a": {"title": "A", "cited": "no"}}}, "rows.a.cited: must be true or false"),
        ({"rows": {"a": {"title": "A", "scales": ["glyph"]}}}, "rows.a.scales: glyph is none of"),
        ({"rows": {"a": {"title": "A", "scales": None}}}, "rows.a.scales: is empty; name one of"),
        ({"rows": {"a": {"title": "A", "paper": {"fid": True}}}}, "rows.a.paper: must map metrics to numbers"),
        ({"rows": {"../a": {"title": "A"}}}, "rows.../a: no row can have this key"),
        ({"rows": {"records": {"title": "A"}}}, "rows.records: no row can have this key"),
        ({"seeds": [0, 1, 0]}, "seeds: a seed is listed twice"),
        ({"teacher": ["mse"]}, "teacher: .* must be the key of a row with a pipeline"),
        ({"protocol": {"glyphs": 500}}, "protocol.glyphs: 500 must be a text"),
        ({"batch_size": {"glyphs": "many"}}, "batch_size.glyphs: 'many' must be a number"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, changes, complaint):
    path = written(tmp_path, **changes)
    with pytest.raises(UserError, match=complaint) as error:
        read_table(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["- a list", "{", "\x00"])
def test_what_is_no_table_file_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        read_table(tmp_path / "t.yaml")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("path", sorted(Path("configs/tables").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_of_a_committed_table_exists(path):
    table = read_table(path)
    for scale in ("glyphs", "sd15", "sdxl"):
        files = [*table.configs, *table.start, *table.pairs] if any(r.configs for r in table.rows.values()) else []
        for row in table.rows_of(scale).values():
            files += [*row.configs, *([row.pipeline] if row.pipeline else [])]
        missing = [at_scale(file, scale) for file in files if not Path(at_scale(file, scale)).is_file()]
        assert not missing
