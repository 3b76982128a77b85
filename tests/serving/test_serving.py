"""The page's server over HTTP: what it draws, what it refuses, and what it gives away."""

import base64
import io
import os
import re
import shutil
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from diffgan.__main__ import main
from diffgan.images import to_uint8
from diffgan.noise import draw_noise
from diffgan.serving.server import listen
from diffgan.teachers.registry import load_teacher
from tests.pair_sets import wait_until
from tests.runs import refused
from tests.serving.pages import ask, call, load, served

PROMPTS = ["digit 7", "a bold capital A in red on cream"]


@pytest.fixture(scope="module")
def address(tiny_pipeline, other_pipeline):
    with served(load(other_pipeline, tiny_pipeline)) as address:
        yield address


def pixels(uri):
    kind, _, content = uri.partition(",")
    assert kind == "data:image/png;base64"
    return torch.from_numpy(np.array(Image.open(io.BytesIO(base64.b64decode(content))))).permute(2, 0, 1)


def test_images_are_those_of_student_and_teacher_on_the_same_noise(address, tiny_pipeline, other_pipeline):
    status, answer, _ = call(address, body=ask(PROMPTS, seed=5, noises=2))
    assert status == 200
    columns = [(prompt, seed) for prompt in PROMPTS for seed in (5, 6)]
    assert [(column["prompt"], column["seed"]) for column in answer["columns"]] == columns
    assert [(row["role"], row["network_calls"]) for row in answer["rows"]] == [("student", 1), ("teacher", 4)]
    for row, path, steps, guidance in zip(
        answer["rows"], (other_pipeline, tiny_pipeline), (1, 4), (1.0, 3.0), strict=True
    ):
        pipeline = load_teacher(str(path))
        assert row["seconds"] > 0 and len(row["images"]) == len(columns)
        for image, (prompt, seed) in zip(row["images"], columns, strict=True):
            noise = draw_noise([seed], pipeline.latent_shape)
            expected = to_uint8(pipeline.decode(pipeline.solve(noise, pipeline.encode([prompt]), steps, guidance)))[0]
            assert (pixels(image).int() - expected.int()).abs().max() <= 1


BUSY = "8 requests are waiting; try again in a moment"
LONG = "a" * 501
MANY_TOKENS = " ".join("abcdefghijklmnopq")


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (ask([LONG]), "has 501 characters and may have 500"),
        (ask([MANY_TOKENS]), "has more tokens than the student takes; shorten it"),
        (ask(PROMPTS, noises=5), "images: must be 1 to 8"),
        (ask(PROMPTS, noises=0), "images: must be 1 to 8"),
        (ask(PROMPTS, noises=10**30), "images: must be 1 to 8"),
        (ask(PROMPTS, noises=True), "images: must be 1 to 8"),
        (ask(PROMPTS, seed=-1), "seed: must be a whole number from 0 to 4294967295"),
        (ask(PROMPTS, seed=2**32), "seed: "),
        (ask(PROMPTS, seed=1.5), "seed: "),
        (ask(PROMPTS, seed=None), "seed: "),
        (ask([]), "prompts: must be a list of texts"),
        (ask("digit 7"), "prompts: must be a list of texts"),
        (ask([7]), "prompts: must be a list of texts"),
        (ask(["\ud800"]), "no text"),
        ({"prompts": ["a"]}, "no JSON with"),
        ([], "no JSON with"),
        (b"{", "no JSON with"),
        (b"\xff", "no JSON with"),
        (b"[" * 30_000, "no JSON with"),
        (b"a" * 40_000, "has more than 32000 bytes"),
    ],
    ids=str,
)
def test_what_is_too_much_or_no_request_is_one_line(address, body, line):
    status, answer, _ = call(address, body=body)
    assert status == 400 and line in answer["error"] and "\n" not in answer["error"]


def test_other_sites_cannot_use_it(address):
    """No JSON without asking first, no answer to that question, and no name but this machine's."""
    assert call(address, body=ask(PROMPTS), headers={"Content-Type": "text/plain"})[0] == 400
    status, _, headers = call(address, "OPTIONS", headers={"Origin": "http://example.org"})
    assert status == 405 and not any(name.lower().startswith("access-control") for name in headers)
    assert call(address, "GET", "/", headers={"Host": "example.org"})[0] == 400
    assert call(address, "GET", "/", headers={"Host": "localhost:1"})[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/docs", "/openapi.json", "/file=/etc/passwd", "/../pyproject.toml", "/templates/page.html", "//etc/passwd"],
)
def test_no_other_address_answers(address, path):
    assert call(address, "GET", path)[0] == 404


def test_page_names_no_folder_and_loads_nothing_from_elsewhere(address, tiny_pipeline):
    for path in ("/", "/page.css", "/page.js"):
        status, text, headers = call(address, "GET", path)
        assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
        assert str(tiny_pipeline.parent) not in text and "http" not in text and "server" not in headers
    assert "tiny" in call(address, "GET", "/")[1]


def held_by(go, drawn):
    """A hook that notes a call of the network and waits until it may go on."""

    def wait(*_):
        drawn.append("begin")
        assert go.wait(60)

    return wait


def test_requests_at_once_are_drawn_one_by_one_and_few_wait(tiny_pipeline):
    """One is drawn, eight wait, the other three are refused at once, and the page still opens."""
    models, go, answers, drawn = load(tiny_pipeline), threading.Event(), [], []
    network = models[0].pipeline.denoiser
    network.register_forward_pre_hook(held_by(go, drawn))
    network.register_forward_hook(lambda *_: drawn.append("end"))
    with served(models) as address:
        threads = [threading.Thread(target=lambda: answers.append(call(address, body=ask(["a"])))) for _ in range(12)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(answers) == 3)
        assert {(status, answer["error"]) for status, answer, _ in answers} == {(503, BUSY)}
        assert call(address, "GET", "/")[0] == 200 and drawn == ["begin"]
        go.set()
        for thread in threads:
            thread.join(60)
    assert [status for status, *_ in answers] == [503] * 3 + [200] * 9
    assert drawn == ["begin", "end"] * 9


def test_request_of_a_reader_who_left_is_not_drawn(tiny_pipeline):
    models, go, drawn = load(tiny_pipeline), threading.Event(), []
    models[0].pipeline.denoiser.register_forward_pre_hook(held_by(go, drawn))
    with served(models) as address:
        first = threading.Thread(target=call, args=(address,), kwargs={"body": ask(["a"])})
        first.start()
        wait_until(lambda: drawn)
        with pytest.raises(TimeoutError):
            call(address, body=ask(["a"]), seconds=0.5)
        go.set()
        first.join(60)
        assert call(address, body=ask(["a"]))[0] == 200
    assert len(drawn) == 2


def test_failure_is_one_line_and_the_server_goes_on(tiny_pipeline, caplog):
    def fail(*_):
        raise RuntimeError("secret")

    models = load(tiny_pipeline)
    with served(models) as address:
        broken = models[0].pipeline.denoiser.register_forward_pre_hook(fail)
        status, answer, _ = call(address, body=ask(PROMPTS))
        assert status == 500 and answer["error"] == "the server failed; its terminal shows why"
        assert "secret" in caplog.text
        broken.remove()
        assert call(address, body=ask(PROMPTS))[0] == 200


def test_image_that_is_not_finite_is_one_line(tiny_pipeline):
    models = load(tiny_pipeline)
    models[0].pipeline.denoiser.conv_out.bias.fill_(float("nan"))
    with served(models) as address:
        status, answer, _ = call(address, body=ask(PROMPTS))
    assert status == 400 and "the image of 'digit 7' (seed 0) is not finite" in answer["error"]


# ---- the command ----


def test_mistakes_of_the_command_are_one_line(tiny_pipeline, tmp_path, capsys):
    def line(*words):
        (line,) = refused(capsys, "serve", *words).splitlines()
        return line

    student = ("--student", tiny_pipeline)
    assert "student" in line()
    assert "no such directory" in line("--student", tmp_path / "none", "--port", 0)
    assert "--host 192.0.2.1" in line(*student, "--host", "192.0.2.1", "--port", 0)
    assert "--port: 99999 is not between" in line(*student, "--port", 99999)
    assert "--device nonsense" in line(*student, "--device", "nonsense", "--port", 0)
    assert "steps: 0" in line(*student, "--teacher", tiny_pipeline, "--steps", 0, "--port", 0)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port}: Address already in use" in line(*student, "--port", port)


def test_teacher_with_other_latents_is_refused(tiny_pipeline, tmp_path, capsys):
    assert "--teacher: its latents are (3, 16, 16)" in refused(
        capsys, "serve", "--student", tiny_pipeline, "--teacher", "glyphs", "--port", 0
    )


def test_a_student_of_another_size_is_beside_its_teacher_in_that_size(tiny_pipeline, tmp_path):
    student = shutil.copytree(tiny_pipeline, tmp_path / "student")
    (student / "diffgan.json").write_text('{"size": [16, 48]}')
    models = load(student, tiny_pipeline)
    assert [model.pipeline.latent_shape for model in models] == [(4, 4, 12)] * 2


def test_missing_extra_is_one_line(tiny_pipeline, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'diffgan[web]'" in refused(capsys, "serve", "--student", tiny_pipeline)


def test_command_serves_until_it_is_interrupted(tiny_pipeline, capsys):
    """As Ctrl-C does it; then the address is free again."""
    seen = {}

    def visit():
        while not (found := re.search(r"http://\S+", capsys.readouterr().out)):
            time.sleep(0.05)
        seen["page"] = call(found[0], "GET", "/")[0]
        seen["drawn"] = call(found[0], body=ask(PROMPTS))[0]
        os.kill(os.getpid(), signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--student", str(tiny_pipeline), "--port", "0"])
    visitor.join()
    assert stop.value.code == 130 and seen == {"page": 200, "drawn": 200}
