"""The page in a browser that reaches nothing but this machine: it draws, refuses, and fits its window."""

import re
import shutil

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from tests.browser import Browser
from tests.pair_sets import wait_until
from tests.serving.pages import load, served

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = 1280, 390

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def address(tiny_pipeline, other_pipeline):
    with served(load(other_pipeline, tiny_pipeline)) as address:
        yield address


@pytest.fixture(scope="module")
def browsers(tmp_path_factory):
    """Two readers, who share nothing."""
    browsers = [Browser(CHROMIUM, tmp_path_factory.mktemp(f"reader-{n}"), offline=False) for n in (1, 2)]
    yield browsers
    for browser in browsers:
        browser.close()


@pytest.fixture
def browser(browsers):
    return browsers[0]


def fill(browser, prompt, count=3, others=""):
    """Type into the form and press the button."""
    for name, value in (("prompt", prompt), ("count", str(count)), ("others", others)):
        browser.value(f"document.getElementById('{name}').value = {value!r}")
    browser.value("document.getElementById('draw').click()")


def wait_for_answer(browser):
    wait_until(lambda: browser.value("!document.getElementById('draw').disabled"))


def shown(browser, selector):
    return browser.value(f"[...document.querySelectorAll('{selector}')].filter((e) => e.offsetParent).length")


def assert_healthy(browser, address):
    assert browser.problems == []
    hosts = {request for request in browser.requests if not request.startswith("data:")}
    assert hosts <= {f"{address}{path}" for path in ("/", "/page.css", "/page.js", "/draw")}
    browser.value("Promise.all([...document.images].map((image) => image.decode()))")
    assert browser.value("[...document.images].every((image) => image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_page_draws_and_fits_its_window(browser, address, width, dark):
    browser.open(address, width, dark=dark)
    assert shown(browser, "#results img") == 0
    fill(browser, "digit 7", count=3, others="a bold capital A in red on cream\n\n digit 7 ")
    wait_for_answer(browser)
    assert [shown(browser, f"{part} img") for part in ("#pair", "#noises", "#prompts")] == [2, 6, 4]
    captions = browser.value("[...document.querySelectorAll('#pair figcaption')].map((e) => e.textContent)")
    assert captions[0].startswith("student1 network call, ") and captions[1].startswith("teacher4 network calls, ")
    assert all(re.search(r"[\d.]+ s an image$", caption) for caption in captions)
    assert browser.value("document.querySelector('#pair img').src == document.querySelector('#noises td img').src")
    assert_healthy(browser, address)
    assert browser.value("document.documentElement.scrollWidth") <= width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", background)[0]) < 128) == dark


def test_too_long_prompt_is_refused_on_the_page_and_the_next_is_drawn(browser, address):
    browser.open(address, DESKTOP)
    for prompt, line in (
        ("a" * 501, "501 characters"),
        (" ".join("abcdefghijklmnopq"), "more tokens than the student takes"),
    ):
        fill(browser, prompt)
        wait_for_answer(browser)
        assert line in browser.value("document.getElementById('error').textContent")
        assert shown(browser, "#error") == 1 and shown(browser, "#results img") == 0
    fill(browser, "digit 7", count=1)
    wait_for_answer(browser)
    assert [shown(browser, f"{part} img") for part in ("#pair", "#noises", "#prompts")] == [2, 0, 0]
    assert shown(browser, "#error") == 0


def test_prompt_is_shown_as_text(browser, address):
    browser.open(address, DESKTOP)
    fill(browser, "x", count=1, others="<b>7</b>")
    wait_for_answer(browser)
    assert browser.value("document.querySelector('#prompts th[scope=col]').textContent") == "<b>7</b>"
    assert shown(browser, "#prompts img") == 2
    assert_healthy(browser, address)


def test_two_readers_at_once_both_get_their_own_images(browsers, address):
    for browser, prompt in zip(browsers, ("digit 7", "a bold capital A"), strict=True):
        browser.open(address, DESKTOP)
        fill(browser, prompt, count=2)
    for browser, prompt in zip(browsers, ("digit 7", "a bold capital A"), strict=True):
        wait_for_answer(browser)
        assert browser.value("document.querySelector('#pair img').alt") == f"student: {prompt}, seed 0"
        assert shown(browser, "#noises img") == 4
        assert_healthy(browser, address)
    first, second = (browser.value("document.querySelector('#pair img').src") for browser in browsers)
    assert first != second


def test_server_that_is_gone_is_one_line(browser, tiny_pipeline):
    with served(load(tiny_pipeline)) as address:
        browser.open(address, DESKTOP)
    fill(browser, "digit 7")
    wait_for_answer(browser)
    assert browser.value("document.getElementById('error').textContent") == "the server does not answer"
