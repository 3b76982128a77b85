"""The page of a run: what it shows, that it loads nothing, and that no text of a user becomes markup."""

import json
import math
import re

import pytest
import torch
from PIL import Image

from diffgan.__main__ import main
from diffgan.reports.comparison import Comparison
from diffgan.reports.images import data_uri
from diffgan.reports.origin import command_line, commit
from tests.reports.pages import HOSTILE, STUDENT, TEACHER, Page, change, compared_pair, comparison, run_after_test
from tests.runs import refused

MEGABYTE = 1e6


@pytest.fixture
def run(tmp_path):
    return run_after_test(tmp_path / "run")


def page_of(run, *records) -> Page:
    main(["report", str(run), *(word for record in records for word in ("--beside", str(record)))])
    return Page((run / "report.html").read_text())


def test_page_shows_every_pair_once_in_each_section(run, capsys):
    page = page_of(run)
    assert "report.html: 3 pairs, 2 with the largest distances" in capsys.readouterr().out
    shown = [image["alt"].partition(":")[0] for image in page.images if image.get("alt", "").startswith(("T", "S"))]
    numbers = [7, 8, 9, 9, 8]
    assert shown == [f"{who}, pair {number}" for number in numbers for who in ("Teacher", "Student")]
    assert "pair 9, seed 1009, distance 2.5" in page.text and "median of all held-out pairs 1.5" in page.text


def test_page_loads_nothing(run):
    page = page_of(run)
    assert len(page.addresses) > 10
    assert all(re.match(r"data:image/(png|webp|svg\+xml);base64,", address) for address in page.addresses)
    assert not {"link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    css = (run / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in css and "@import" not in css


def test_texts_of_users_are_no_markup(run):
    change(run / "metrics.json", name=HOSTILE, protocol=HOSTILE, config={HOSTILE: [HOSTILE]})
    page = page_of(run)
    assert page.tags.count("script") == 1 and "onerror" not in page.attributes
    assert page.text.count(HOSTILE) >= 4  # caption (in both sections), name, protocol
    assert "my <file>.yaml" in page.text


def test_table_shows_records_beside_each_other(run, tmp_path):
    for name, record in {"teacher": TEACHER, "one": TEACHER | {"name": "teacher, 1 step", "network_calls": 1}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    page = page_of(run, tmp_path / "teacher.json", tmp_path / "one.json")
    assert page.cells[0] == ["", "student, 1 step", "teacher, 20 steps", "teacher, 1 step", "real images"]
    assert page.row("network calls") == ["1", "20", "1", ""]
    rows = [cells[1:] for cells in page.cells if len(cells) == 5]
    assert ["159.6", "146.0", "146.0", "67.0"] in rows  # the distance with grain
    assert ["145.2", "", "", ""] in rows  # KID x 1000
    assert page.row("reading") == ["0.958", "0.944", "0.944", "0.889"]
    assert page.row("held-out MSE") == ["0.1673", "", "", ""]
    assert page.row("images") == ["620"]


def test_values_that_are_not_numbers_are_shown_as_such(run):
    metrics = STUDENT["metrics"] | {"evaluation/fd_efficientnet_grain": math.nan}
    change(run / "metrics.json", metrics=metrics)
    tested = comparison(first=[compared_pair(7, "digit 7", math.nan, 64)])
    tested.write(run)
    page = page_of(run)
    assert page.row("fd_efficientnet_grain") == ["NaN"]
    assert ["NaN"] in [cells[1:2] for cells in page.cells[1:6]]
    assert "pair 7, seed 1007, distance NaN" in page.text


def test_provenance_says_what_made_the_student(run):
    text = " ".join(page_of(run).text.split())
    for fact in (
        "Distilled with 32,000 images from 2,000 noise-latent pairs of the teacher glyphs (20 steps, guidance 3)",
        "glyphs-500 (ffdea9a591851808)",
        "last.ckpt, digest 881d17ff8c836ad25e500c090954cabf",
        "glyphs, digest 427cf866e5181d2c",
        "seed 0",
        "x86_64, threads: 1",
        "0.5.0, commit 0123456789ab",
        "python 3.11.7, torch 2.14.1",
        "diffgan test -c 'my <file>.yaml'",
        "class_path: diffgan.methods.diffusion2gan.Diffusion2GAN",
    ):
        assert fact in text, fact


def test_curves_are_described_in_words(run):
    alt = [image["alt"] for image in page_of(run).images if "g/regression" in image.get("alt", "")]
    assert alt == ["g/regression from 2 at 0 images to 1.03 at 31,000"]


def test_run_without_curves_has_a_page(run):
    for events in run.glob("events.*"):
        events.unlink()
    assert "holds no curves" in page_of(run).text


# ---- size ----


def test_page_of_large_noisy_images_is_below_three_megabytes(tmp_path):
    """Noise compresses worst: 18 pairs of 1024 x 1024 pixels within the bytes that the callback allows each image."""
    from callbacks.compare_pairs import FIRST, IMAGES_BYTES, LARGEST

    pair = compared_pair(1, "noise", 1.0, 1024, IMAGES_BYTES // (2 * (FIRST + LARGEST)))
    run = run_after_test(
        tmp_path / "run", side=64, image_size=[1024, 1024], first=[pair] * FIRST, largest=[pair] * LARGEST
    )
    page_of(run)
    assert (run / "report.html").stat().st_size < 3 * MEGABYTE


@pytest.mark.parametrize(("side", "kind"), [(64, "png"), (128, "png"), (256, "webp"), (1024, "webp")])
def test_images_are_exact_if_small_and_within_the_limit_if_large(side, kind):
    import base64
    import io

    rows = torch.linspace(0, 255, side).round().byte()
    image = torch.stack([rows.expand(side, side), rows[:, None].expand(side, side), rows.expand(side, side)])
    uri = data_uri(image, limit=20_000)
    head, _, content = uri.partition(",")
    assert head == f"data:image/{kind};base64"
    content = base64.b64decode(content)
    shown = Image.open(io.BytesIO(content)).convert("RGB")
    assert shown.size == (min(side, 512),) * 2
    if kind == "png":
        assert list(shown.getdata()) == [tuple(pixel) for pixel in image.flatten(1).T.tolist()]
    else:
        assert len(content) <= 20_000
        assert abs(shown.getpixel((shown.width - 1, 0))[0] - 255) < 16 and shown.getpixel((0, 0))[0] < 16


# ---- bad input ----


def page_is_untouched(run, capsys, *words) -> str:
    """The line with which `report` refuses; neither an old page nor the rest of the folder changes."""
    (run / "report.html").write_text("old")
    before = sorted(run.iterdir())
    error = refused(capsys, "report", run, *words)
    assert error.count("diffgan: error: ") == 1 and error.rpartition("diffgan: error: ")[2].count("\n") == 1
    assert sorted(run.iterdir()) == before
    assert (run / "report.html").read_text() == "old"
    return error


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("metrics.json", None, "metrics.json: no such file; run diffgan test first"),
        ("metrics.json", "{", "metrics.json: is no record (JSONDecodeError"),
        ("metrics.json", '{"name": "x"}', "metrics.json: is no metrics.json (it has no mapping `metrics`)"),
        ("metrics.json", '{"name": "x", "metrics": {}, "stage": "fit"}', "is a record of diffgan fit; run"),
        ("report.json", None, "report.json: No such file or directory; run diffgan test with"),
        ("report.json", "[1", "report.json: is no comparison of teacher and student (JSONDecodeError"),
        ("report.json", '{"first": []}', "report.json: is no comparison of teacher and student (KeyError"),
        ("report.json", '{"steps": "many"}', "report.json: is no comparison of teacher and student (ValueError"),
        ("report.json", "[]", "report.json: is no comparison of teacher and student (ValueError: no JSON object"),
    ],
)
def test_run_without_a_whole_test_is_refused(run, capsys, file, content, message):
    (run / file).unlink()
    if content is not None:
        (run / file).write_text(content)
    assert message in page_is_untouched(run, capsys)


def test_no_folder_is_refused(tmp_path, capsys):
    assert "nothing/metrics.json: no such file" in refused(capsys, "report", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_record_without_pairs_or_with_other_addresses_is_refused(run, capsys):
    change(run / "report.json", first=[])
    assert "it holds no pairs" in page_is_untouched(run, capsys)
    pair = json.loads((run_after_test(run) / "report.json").read_text())["first"][0]
    change(run / "report.json", first=[pair | {"teacher": "https://example.org/image.png"}])
    assert "pair 7 holds no PNG or WebP image" in page_is_untouched(run, capsys)


def test_records_of_different_tests_are_refused(run, capsys):
    change(run / "report.json", images_seen=16000)
    assert "report.json is of 16000 images, metrics.json of 32000" in page_is_untouched(run, capsys)


def test_record_of_another_protocol_is_refused(run, tmp_path, capsys):
    other = tmp_path / "other.json"
    other.write_text(json.dumps(TEACHER | {"protocol_digest": "0"}))
    assert f"{other} and {run}/metrics.json are of different protocols" in page_is_untouched(
        run, capsys, "--beside", other
    )


# ---- origin ----


def test_record_is_read_as_it_was_written(run):
    assert Comparison.read(run) == comparison()


def test_command_line_names_no_folder_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "/opt/venv/bin/diffgan",
        "test",
        "-c",
        f"{tmp_path}/a b.yaml",
        f"--data.folder={tmp_path}/pairs",
        "s3://b/x",
    ]
    assert command_line(words) == "diffgan test -c 'a b.yaml' --data.folder=pairs s3://b/x"
    assert command_line(["/x/diffgan/__main__.py", "test"]) == "diffgan test"


def test_commit_is_that_of_the_repository_itself(tmp_path):
    import subprocess

    def git(*words):
        identity = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        return subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD").stdout[:12]
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("two")
    assert commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "inside").mkdir()
    assert commit(tmp_path / "inside") is None
