"""The page in a browser without a network: nothing fails, nothing overflows, and the slider moves."""

import re
import shutil

import pytest

from diffgan.__main__ import main
from tests.browser import Browser
from tests.reports.pages import run_after_test

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DESKTOP, PHONE = 1280, 390
ARROW_RIGHT, HOME = ("ArrowRight", 39), ("Home", 36)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = run_after_test(tmp_path_factory.mktemp("run"))
    main(["report", str(run)])
    return run / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def assert_healthy(browser):
    assert browser.problems == []
    loaded = {re.match(r"\w+", address)[0] for address in browser.requests}
    assert loaded <= {"file", "data"} and sum(address.startswith("file") for address in browser.requests) == 1
    browser.value("Promise.all([...document.images].map((image) => image.decode()))")
    assert browser.value("[...document.images].every((image) => image.naturalWidth > 0)")


def box(browser, selector):
    """(left, top, width, height) of an element in the window."""
    return browser.value(
        f"(() => {{ const box = document.querySelector('{selector}').getBoundingClientRect();"
        "return [box.left, box.top, box.width, box.height]; })()"
    )


def shown_share(browser):
    """Percent of the teacher's image that is shown, as the control says and as the image is cut."""
    stage = box(browser, "#stage")
    cut = browser.value("getComputedStyle(document.getElementById('teacher-image')).clipPath")
    left = box(browser, "#divider")[0] + 1 - stage[0]
    value = float(browser.value("document.getElementById('share').value"))
    assert cut != "none" and left == pytest.approx(stage[2] * value / 100, abs=1)
    return value


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_page_is_healthy_and_nothing_overflows(browser, page, width, dark):
    browser.open(page, width, dark=dark)
    assert_healthy(browser)
    assert browser.value("document.documentElement.scrollWidth") <= width
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", background)[0]) < 128) == dark


def test_page_of_large_images_is_healthy(browser, tmp_path):
    run = run_after_test(tmp_path / "run", side=600)
    main(["report", str(run)])
    browser.open(run / "report.html", PHONE)
    assert_healthy(browser)
    assert browser.value("document.getElementById('teacher-image').naturalWidth") == 512
    left, _, width, height = box(browser, "#stage")
    assert width == height and left + width <= PHONE


def test_slider_follows_mouse_and_keys(browser, page):
    browser.open(page, DESKTOP)
    assert shown_share(browser) == 50
    left, top, width, height = box(browser, "#stage")
    middle = top + height / 2
    browser.drag((left + width * 0.6, middle), (left + width * 0.25, middle))
    assert shown_share(browser) == pytest.approx(25, abs=1)
    before = shown_share(browser)
    browser.value("document.getElementById('share').focus()")
    browser.press(*ARROW_RIGHT)
    assert shown_share(browser) == before + 1
    browser.press(*HOME)
    assert shown_share(browser) == 0
    assert browser.value("document.getElementById('share').getAttribute('aria-valuetext')").startswith("0 percent")
    assert_healthy(browser)


def test_slider_follows_a_finger(browser, page):
    browser.open(page, PHONE)
    left, top, width, height = box(browser, "#stage")
    middle = top + height / 2
    browser.swipe((left + width * 0.5, middle), (left + width * 0.8, middle))
    assert shown_share(browser) == pytest.approx(80, abs=2)
    assert_healthy(browser)


def test_any_pair_can_be_shown_in_the_slider(browser, page):
    browser.open(page, DESKTOP)
    chosen = "document.querySelectorAll('.pair')[1]"
    assert not browser.value(f"document.getElementById('teacher-image').src == {chosen}.querySelector('img').src")
    browser.value(f"{chosen}.querySelector('button').click()")
    assert browser.value(f"document.getElementById('teacher-image').src == {chosen}.querySelector('img').src")
    assert browser.value(f"{chosen}.querySelector('button').getAttribute('aria-pressed')") == "true"
    assert "alert" in browser.value("document.querySelector('#viewer .prompt').textContent")
    assert browser.value("document.querySelectorAll('script').length") == 1
    assert_healthy(browser)


def test_page_without_scripts_shows_images_side_by_side(browser, page):
    browser.open(page, DESKTOP, script=False)
    root = browser.call("DOM.getDocument")["root"]["nodeId"]

    def box_of(selector, index=0):
        nodes = browser.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]
        return browser.call("DOM.getBoxModel", nodeId=nodes[index])["model"]

    teacher, student = (box_of(".pair img", index) for index in range(2))
    assert teacher["width"] == student["width"] > 100
    assert student["content"][0] >= teacher["content"][0] + teacher["width"]
    assert student["content"][1] == teacher["content"][1]
    with pytest.raises(AssertionError, match="box model"):  # an element that is not shown has none
        box_of("#viewer")
