"""Tables and charts in README files: what records render, which value is bold, mistakes that change nothing."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffgan.cli.tables.compare import tables
from diffgan.cli.tables.render import render
from diffgan.errors import UserError

ROOT = Path(__file__).parents[2]
RENDERED = ["README.md", "configs", "diffgan", "tests"]  # as in the Makefile
OUTPUTS = ("runs", "pairs", "build", "dist")  # of the Makefile and of builds
HEADING = "FD (EfficientNet)"


def record(path, protocol="p", name="a", stage="test", **metrics):
    """A metrics.json; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = {f"evaluation/{key}": value for key, value in metrics.items()}
    content = {"name": name, "stage": stage, "metrics": values, "protocol": "glyphs", "protocol_digest": protocol}
    path.write_text(json.dumps(content | {"images_seen": metrics.pop("images", None)}))
    return str(path)


def page(path, *starts):
    """A Markdown file with an empty block for each comment."""
    kinds = [start.partition(":")[0] for start in starts]
    blocks = [f"<!-- {start} -->\nold\n<!-- end of {kind} -->" for start, kind in zip(starts, kinds, strict=True)]
    path.write_text("\n\n".join(["# Title", *blocks, "last line\n"]))
    return path


def listed(path, rows, columns=("fd_efficientnet",), **others):
    """A file that lists the rows of a table; rows: title -> records, or the row itself."""
    rows = [row if isinstance(row, dict) else {"title": title, "records": row} for title, row in rows.items()]
    path.write_text(yaml.safe_dump({"columns": list(columns), "rows": rows} | others))
    return path


def lines_of(path):
    """The lines of a page's only block."""
    lines = path.read_text().split("\n")
    return lines[3 : lines.index(next(line for line in lines if line.startswith("<!-- end")))]


def table_of(tmp_path, rows, **others):
    """The lines of a listed table."""
    table = listed(tmp_path / "table.yaml", rows, **others)
    file = page(tmp_path / "README.md", f"table: {table}")
    render([file])
    return lines_of(file)


# ---- the repository ----


def test_every_table_of_the_repository_is_what_its_records_render(capsys):
    """Fails if a table in a README was edited by hand, or a record was changed: `make tables` writes them."""
    folders = [path for path in Path().iterdir() if path.is_dir() and path.name not in OUTPUTS and path.name[0] != "."]
    assert {path.name for path in folders if list(path.rglob("README.md"))} <= set(RENDERED)
    render([Path(path) for path in RENDERED], check=True)
    count = int(capsys.readouterr().out.split()[0])
    assert count >= 10


def test_tables_of_the_repository_hold_the_numbers_of_the_records():
    """Read with json alone."""
    metrics = json.loads(Path("configs/glyphs/results/demo/student.json").read_text())["metrics"]
    (row,) = (line for line in Path("README.md").read_text().splitlines() if line.startswith("| student |"))
    values = [metrics[f"evaluation/{key}"] for key in ("fd_efficientnet_grain", "kid_efficientnet_grain")]
    assert f"| 1 | {values[0]:.1f} | {1000 * values[1]:.1f} |" in row
    text = (ROOT / "configs/glyphs/README.md").read_text()
    records = [Path(f"configs/tables/results/glyphs/regression-losses/mse-seed-{seed}.json") for seed in range(3)]
    values = [json.loads(file.read_text())["metrics"]["evaluation/fd_efficientnet_grain"] for file in records]
    assert f"| MSE | {sum(values) / 3:.1f} ({min(values):.1f} to {max(values):.1f}) |" in text


# ---- pages ----


def test_blocks_are_written_anew_and_the_rest_stays(tmp_path, capsys):
    table = listed(tmp_path / "table.yaml", {"teacher": record(tmp_path / "a.json", fd_efficientnet=60.04)})
    file = page(tmp_path / "README.md", f"table: {table}")
    expected = f"# Title\n\n<!-- table: {table} -->\n|  | {HEADING} |\n| --- | --- |\n| teacher | 60.0 |\n"
    render([tmp_path])
    assert file.read_text() == expected + "<!-- end of table -->\n\nlast line\n"
    assert "1 tables and charts in 1 files, 1 changed" in capsys.readouterr().out
    os.utime(file, (1, 1))
    render([file])
    render([file], check=True)
    assert file.stat().st_mtime == 1, "a page that is current is not written"


def test_check_names_what_differs_and_writes_nothing(tmp_path):
    table = listed(tmp_path / "table.yaml", {"teacher": record(tmp_path / "a.json", fd_efficientnet=60.0)})
    file = page(tmp_path / "README.md", f"table: {table}", f"table: {table}")
    before = file.read_text()
    with pytest.raises(UserError, match=rf"README.md, line 3: table {table} differs .* \(and 1 more\); run diffgan"):
        render([file], check=True)
    assert file.read_text() == before
    render([file])
    record(tmp_path / "a.json", fd_efficientnet=61.0)
    with pytest.raises(UserError, match="differs from its records"):
        render([file], check=True)


def test_comments_in_fenced_code_are_text(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("```\n<!-- table: a.yaml -->\n```\n")
    render([file], check=True)
    assert file.read_text() == "```\n<!-- table: a.yaml -->\n```\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- table: a.yaml -->\n", "line 1: <!-- table: a.yaml --> has no <!-- end of table --> after it"),
        ("<!-- table: a.yaml -->\n<!-- table: b.yaml -->\n<!-- end of table -->", "line 1: .* has no <!-- end"),
        ("<!-- table: a.yaml -->\n<!-- end of bars -->", "line 1: .* has no <!-- end of table"),
        ("\n<!-- end of table -->\n", "line 2: <!-- end of table --> has no start"),
        ("<!-- table: nothing.yaml -->\n<!-- end of table -->", "line 1: nothing.yaml: is no table .*No such file"),
        ("<!-- table: nothing.yaml glyphs -->\n<!-- end of table -->", "line 1: nothing.yaml: is no table file"),
        ("<!-- table: a.yaml huge -->\n<!-- end of table -->", "'a.yaml huge': name a file"),
        ("<!-- bars: a.yaml -->\n<!-- end of bars -->", "name a table, a metric and a PNG"),
    ],
)
def test_mistakes_in_a_page_are_one_line(text, message, tmp_path):
    (tmp_path / "README.md").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        render([tmp_path])
    assert "\n" not in str(error.value)


def broken_records(folder):
    """Mistake -> records of a table with two rows, and the message."""
    good = record(folder / "good.json", fd_efficientnet=60.0)
    other = record(folder / "other.json", protocol="q", fd_efficientnet=50.0)
    (folder / "text.json").write_text("no JSON")
    (folder / "list.json").write_text("[]")
    (folder / "empty.json").write_text("{}")
    return {
        "two protocols": ([good, other], f"{other} and {good} are of different protocols"),
        "no JSON": ([good, str(folder / "text.json")], "text.json: is no record .*JSONDecodeError"),
        "no object": ([good, str(folder / "list.json")], "list.json: is no record"),
        "no metrics": ([good, str(folder / "empty.json")], "empty.json: is no metrics.json"),
        "missing": ([good, str(folder / "nothing.json")], "nothing.json: is no record .*No such file"),
    }


@pytest.mark.parametrize("mistake", ["two protocols", "no JSON", "no object", "no metrics", "missing"])
def test_a_wrong_record_changes_no_page(mistake, tmp_path):
    records, message = broken_records(tmp_path)[mistake]
    good = listed(tmp_path / "good.yaml", {"a": records[0]})
    bad = listed(tmp_path / "bad.yaml", {"a": records[0], "b": records[1]})
    first, second = page(tmp_path / "a.md", f"table: {good}"), page(tmp_path / "b.md", f"table: {bad}")
    before = first.read_text(), second.read_text()
    with pytest.raises(UserError, match=rf"b.md, line 3: .*{message}"):
        render([first, second])
    assert (first.read_text(), second.read_text()) == before
    assert not list(tmp_path.glob("*.partial"))


# ---- bold ----


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("fd_efficientnet", {"a": (10, 12, 11), "b": (13, 15, 14)}, "a"),
        ("fd_efficientnet", {"a": (10, 13, 11), "b": (13, 15, 14)}, None),  # the ranges touch
        ("fd_efficientnet", {"a": (10, 12), "b": (13, 15), "c": (11, 30)}, None),
        ("fd_efficientnet", {"a": (20, 22), "b": (10, 12), "c": (21, 30)}, "b"),
        ("fd_efficientnet", {"a": (10, 12), "b": (13,)}, None),  # nobody knows the range of b
        ("fd_efficientnet", {"a": (10, 12), "b": (13, float("nan"))}, None),
        ("fd_efficientnet", {"a": (10, 12)}, None),
        ("reading", {"a": (0.5, 0.6), "b": (0.7, 0.8)}, "b"),
        ("diversity_ratio", {"a": (0.5, 0.6), "b": (0.7, 0.8)}, None),  # neither more nor less is better
    ],
)
def test_the_best_value_is_bold_only_where_ranges_do_not_overlap(metric, values, best, tmp_path):
    rows = {
        name: [record(tmp_path / f"{name}{seed}.json", **{metric: value}) for seed, value in enumerate(seeds)]
        for name, seeds in values.items()
    }
    lines = table_of(tmp_path, rows, columns=[metric])
    assert [line.split(" | ")[0] for line in lines if "**" in line] == ([f"| {best}"] if best else [])


def test_pipelines_without_seeds_are_not_compared(tmp_path, capsys):
    teacher = record(tmp_path / "t.json", name="teacher", stage="evaluate", fd_efficientnet=1.0)
    runs = [
        record(tmp_path / f"{name}{seed}.json", name=name, fd_efficientnet=value + seed)
        for name, value in {"a": 10.0, "b": 20.0}.items()
        for seed in range(2)
    ]
    tables([Path(path) for path in [teacher, *runs]])
    assert capsys.readouterr().out.splitlines()[2:5] == [
        "| teacher | 1 | 1.0 |",
        "| a | 1 | **10.5 (10.0 to 11.0)** |",
        "| b | 1 | 20.5 (20.0 to 21.0) |",
    ]


# ---- files that list rows ----


def test_columns_and_rows_of_a_listed_table(tmp_path):
    teacher = record(
        tmp_path / "t.json",
        fd_efficientnet=50.0,
        fd_efficientnet_floor=20.0,
        fd_efficientnet_reconstruction=30.0,
        noise_share=0.45678,
    )
    (tmp_path / "m.json").write_text('{"protocol_digest": "p", "parts": {"2": {"noise_share": 0.5, "state": "slow"}}}')
    columns = [
        "fd_efficientnet",
        {"key": "fd_efficientnet", "heading": "FD / teacher", "digits": 2, "relative_to": teacher},
        {"key": "noise_share", "heading": "noise, %", "scale": 100, "digits": 1},
        {"key": "state"},
        {"text": "weights"},
    ]
    rows = {
        "t": {"title": "teacher", "records": teacher, "text": {"weights": "4 million"}},
        "s": {"title": "student", "records": record(tmp_path / "s.json", fd_efficientnet=60.0)},
        "a": {"title": "autoencoder", "records": teacher, "suffix": "_reconstruction"},
        "m": {"title": "measured", "records": str(tmp_path / "m.json"), "at": ["parts", "2"]},
        "n": {"title": "a | b"},
    }
    assert table_of(tmp_path, rows, columns=columns, title="row", real_images=True) == [
        f"| row | {HEADING} | FD / teacher | noise, % | state | weights |",
        "| --- | --- | --- | --- | --- | --- |",
        "| teacher | 50.0 | 1.00 | 45.7 |  | 4 million |",
        "| student | 60.0 | 1.20 |  |  |  |",
        "| autoencoder | 30.0 | 0.60 |  |  |  |",
        "| measured |  |  | 50.0 | slow |  |",
        "| a \\| b | not measured | not measured | not measured | not measured |  |",
        "| real images | 20.0 |  |  |  |  |",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": ["fd_eficientnet"]}, "columns: no record has fd_eficientnet; did you mean fd_efficientnet"),
        ({"columns": [{"heading": "FD"}]}, "columns 1: needs either key"),
        ({"columns": [{"kee": "fd"}]}, "columns 1: kee is none of key, heading"),
        ({"tittle": "x"}, "tittle is none of columns"),
        ({"rows": [{"records": "a.json"}]}, "rows 1: .*title"),
        ({"rows": [{"title": "a", "text": {"weights": "4"}}]}, "a: no column of texts is called weights"),
        ({"rows": [{"title": "a", "records": "{a}", "at": ["metrics", "x"]}]}, "a.json: holds nothing at metrics > x"),
        ({"columns": 5}, "columns: must be a list"),
        ({"rows": None}, "rows: must be a list"),
        ({"title": 5}, "title: must be a text"),
        ({"real_images": "no"}, "real_images: must be true or false"),
        ({"columns": [{"key": "fd_efficientnet", "heading": 5}]}, "columns 1: heading: must be a text"),
        ({"columns": [{"key": "fd_efficientnet", "digits": "two"}]}, "columns 1: digits: must be"),
        ({"columns": [{"key": "fd_efficientnet", "scale": "ten"}]}, "columns 1: scale: must be a number"),
        ({"columns": [{"key": "fd_efficientnet", "better": "up"}]}, "columns 1: better: must be lower or higher"),
        ({"rows": [{"title": 50, "records": "{a}"}]}, "rows 1: title: must be a text"),
        ({"rows": [{"title": "a", "records": None}]}, "rows 1: records: must be a list of texts"),
        ({"rows": [{"title": "a", "records": "{a}", "at": 5}]}, "rows 1: at: must be a list of texts"),
        ({"rows": [{"title": "a", "text": ["x"]}]}, "rows 1: text: must be a mapping"),
        ({"rows": [{"title": "a", "records": "{a}", "suffix": 5}]}, "rows 1: suffix: must be a text"),
    ],
)
def test_mistakes_in_a_listed_table_are_one_line(changes, message, tmp_path):
    a = record(tmp_path / "a.json", fd_efficientnet=60.0)
    content = {"columns": ["fd_efficientnet"], "rows": [{"title": "a", "records": a}]} | changes
    (tmp_path / "table.yaml").write_text(yaml.safe_dump(content).replace("{a}", a))
    file = page(tmp_path / "README.md", f"table: {tmp_path / 'table.yaml'}")
    with pytest.raises(UserError, match=message) as error:
        render([file])
    assert "\n" not in str(error.value)


def test_a_column_is_not_divided_by_a_record_of_another_protocol(tmp_path):
    a = record(tmp_path / "a.json", fd_efficientnet=60.0)
    other = record(tmp_path / "other.json", protocol="q", fd_efficientnet=30.0)
    columns = [{"key": "fd_efficientnet", "relative_to": other}]
    file = listed(tmp_path / "table.yaml", {"a": a}, columns=columns)
    with pytest.raises(UserError, match="different protocols"):
        render([page(tmp_path / "README.md", f"table: {file}")])


# ---- tables of the paper ----


@pytest.fixture
def swept(tmp_path, monkeypatch):
    """A table of the paper with records at one scale, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    content = {
        "title": "Losses",
        "seeds": [0, 1],
        "columns": {"glyphs": ["fd_efficientnet", "validation/mse"], "sd15": ["fid", "clip_score"]},
        "paper": {"scale": "sd15", "source": "table 1"},
        "rows": {
            "mse": {"title": "MSE", "configs": ["mse.yaml"], "paper": {"fid": 110.55, "clip_score": 0.222}},
            "huber": {"title": "pseudo-Huber", "configs": ["huber.yaml"], "paper": {"fid": 87.6}},
            "lpips": {"title": "LPIPS", "configs": ["lpips.yaml"], "scales": ["sd15"]},
            "latent": {"title": "LatentLPIPS", "configs": ["latent.yaml"]},
            "teacher": {"title": "teacher", "pipeline": "teacher.yaml", "paper": {"fid": 8.74}},
            "dmd": {"title": "DMD", "cited": True, "paper": {"fid": 11.49}},
        },
    }
    Path("losses.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    folder = Path("configs/tables/results/glyphs/losses")
    for seed, value in enumerate((10.0, 20.0)):
        record(folder / f"mse-seed-{seed}.json", fd_efficientnet=value)
    record(folder / "huber-seed-1.json", fd_efficientnet=30.0)
    record(folder / "teacher.json", stage="evaluate", fd_efficientnet=5.0, fd_efficientnet_floor=1.0)
    return "losses.yaml"


def test_measured_values_and_the_paper_s_stand_side_by_side(swept):
    file = page(Path("README.md"), f"table: {swept} glyphs")
    render([file])
    assert lines_of(file) == [
        f"| Losses | {HEADING} | held-out MSE | FID in the paper (sd15) | CLIP score in the paper (sd15) |",
        "| --- | --- | --- | --- | --- |",
        "| MSE | 15.0 (10.0 to 20.0) |  | 110.55 | 0.222 |",
        "| pseudo-Huber (1 of 2 seeds) | 30.0 |  | 87.60 |  |",
        "| LatentLPIPS | not measured | not measured |  |  |",
        "| teacher | 5.0 |  | 8.74 |  |",
        "| DMD |  |  | 11.49 |  |",
        "| real images | 1.0 |  |  |  |",
        "",
        "Protocol glyphs (p). Paper: sd15, table 1.",
    ]


def test_a_scale_without_records_shows_the_paper_beside_what_is_not_measured(swept):
    file = page(Path("README.md"), f"table: {swept} sd15")
    render([file])
    heads, _, first, _, lpips, *others = lines_of(file)
    assert heads == "| Losses | FID | FID in the paper (sd15) | CLIP score | CLIP score in the paper (sd15) |"
    assert first == "| MSE | not measured | 110.55 | not measured | 0.222 |"
    assert lpips == "| LPIPS | not measured |  | not measured |  |"
    assert not any("real images" in line for line in others)


def test_records_of_another_protocol_in_a_table_of_the_paper_are_refused(swept):
    record(Path("configs/tables/results/glyphs/losses/latent-seed-0.json"), protocol="q", fd_efficientnet=1.0)
    file = page(Path("README.md"), f"table: {swept} glyphs")
    with pytest.raises(UserError, match=r"README.md, line 3: .*latent-seed-0.json and .* different protocols"):
        render([file])
    assert lines_of(file) == ["old"]


# ---- charts ----


@pytest.fixture
def chart(tmp_path):
    """A page with a chart of bars, drawn."""
    rows = {
        name: [record(tmp_path / f"{name}{seed}.json", fd_efficientnet=value * (1 + 0.1 * seed)) for seed in range(2)]
        for name, value in {"short": 10.0, "long": 20.0}.items()
    }
    table = listed(tmp_path / "table.yaml", rows, title="losses")
    file = page(tmp_path / "README.md", f"bars: {table} fd_efficientnet results/bars.png")
    render([file])
    return file


def blue(image):
    """Pixels in the colour of bars."""
    return (np.abs(np.asarray(image.convert("RGB")).astype(int) - (0, 0x72, 0xB2)).sum(-1) < 60).sum(1)


def test_bars_are_as_long_as_their_means(chart):
    assert lines_of(chart) == [f"![losses: {HEADING}](results/bars.png)"]
    counts = blue(Image.open(chart.parent / "results/bars.png"))
    drawn = np.flatnonzero(counts > 20)
    first, second = np.split(drawn, np.flatnonzero(np.diff(drawn) > 1) + 1)
    assert np.median(counts[second]) / np.median(counts[first]) == pytest.approx(2, rel=0.03)


def test_a_chart_is_drawn_again_only_if_its_values_differ(chart, tmp_path):
    png = tmp_path / "results/bars.png"
    first = png.read_bytes()
    png.unlink()
    render([chart])
    assert png.read_bytes() == first, "the same values give the same bytes"
    texts = PngInfo()
    texts.add_text("diffgan", Image.open(png).info["diffgan"])
    Image.new("RGB", (8, 8)).save(png, pnginfo=texts)  # as another version of matplotlib would: other pixels
    render([chart], check=True)
    render([chart])
    assert Image.open(png).size == (8, 8)
    record(tmp_path / "long0.json", fd_efficientnet=21.0)
    with pytest.raises(UserError, match=r"README.md, line 3: bars .* differs from its records"):
        render([chart], check=True)
    render([chart])
    assert Image.open(png).size != (8, 8)
    render([chart], check=True)


def test_a_missing_or_damaged_chart_differs(chart, tmp_path):
    png = tmp_path / "results/bars.png"
    for content in (b"", png.read_bytes()[:500]):
        png.write_bytes(content)
        with pytest.raises(UserError, match="differs"):
            render([chart], check=True)
    png.unlink()
    with pytest.raises(UserError, match="differs"):
        render([chart], check=True)


def test_curves_join_rows_of_one_title_against_images(tmp_path):
    budgets = {8: 40.0, 32: 30.0, 16: 35.0}
    rows = {
        count: {"title": "student", "records": record(tmp_path / f"{count}.json", fd_efficientnet=fd, images=count)}
        for count, fd in budgets.items()
    }
    table = listed(tmp_path / "table.yaml", rows, columns=["images_seen", "fd_efficientnet"], title="budget")
    file = page(tmp_path / "README.md", f"curves: {table} fd_efficientnet curves.png")
    render([file])
    assert lines_of(file) == [f"![budget: {HEADING} against images](curves.png)"]
    points = json.loads(Image.open(tmp_path / "curves.png").info["diffgan"])["points"]
    assert [(point["images"], point["mean"]) for point in points] == list(budgets.items())
    listed(tmp_path / "table.yaml", {"a": rows[8]["records"]})
    with pytest.raises(UserError, match="the table has no column images_seen; it has fd_efficientnet"):
        render([file])


def test_a_chart_of_what_was_not_measured_is_refused(tmp_path):
    table = listed(tmp_path / "table.yaml", {"a": []})
    file = page(tmp_path / "README.md", f"bars: {table} fd_efficientnet bars.png")
    with pytest.raises(UserError, match="no row of the table has fd_efficientnet"):
        render([file])
    assert not (tmp_path / "bars.png").exists()
