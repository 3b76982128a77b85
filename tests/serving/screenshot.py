"""A picture of the page for documentation: python -m tests.serving.screenshot STUDENT TEACHER FILE.png."""

import shutil
import sys
import tempfile
from pathlib import Path

from tests.browser import Browser
from tests.pair_sets import wait_until
from tests.serving.pages import load, served

SIZE = (1280, 800)
VALUES = {
    "prompt": "a bold serif capital A in dark red on cream",
    "seed": "7",
    "count": "6",
    "others": "small g on blue\na light italic digit 7 in black on white\na bold capital R in dark red on cream",
}


def take(student: str, teacher: str, file: Path) -> None:
    """Draw with these pipelines and write what the page shows."""
    with served(load(student, teacher, steps=50)) as address, tempfile.TemporaryDirectory() as profile:
        browser = Browser(shutil.which("chromium"), Path(profile), offline=False)
        browser.open(address, *SIZE)
        for name, value in VALUES.items():
            browser.value(f"document.getElementById('{name}').value = {value!r}")
        browser.value("document.getElementById('draw').click()")
        wait_until(lambda: browser.value("!document.getElementById('draw').disabled"), 300)
        browser.value("document.activeElement.blur()")
        browser.screenshot(file)
        browser.close()


if __name__ == "__main__":
    take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
