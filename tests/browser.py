"""Chromium without a window and without a network but this machine, driven over a pipe (Chrome DevTools Protocol)."""

import base64
import fcntl
import itertools
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ),
    "--remote-debugging-pipe",
)
SECONDS = 60  # for an answer


class Browser:
    """One page of a browser.

    Args:
        program: path of chromium.
        profile: an empty folder.
        offline: the page cannot reach this machine either.

    Attributes:
        problems: what the page wrote to the console as warning or error, and its uncaught exceptions.
        requests: the addresses it asked for.
    """

    def __init__(self, program: str, profile: Path, offline: bool = True):
        (commands, self._commands), (self._answers, answers) = map(_pipe, range(2))
        redirected = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        words = ["bash", "-c", redirected, program, *FLAGS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(words, pass_fds=(commands, answers), stderr=subprocess.DEVNULL)
        for end in (commands, answers):
            os.close(end)
        self._numbers, self._received, self._session = itertools.count(1), b"", {}
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": session["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")
        if offline:
            nothing = {"latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
            self.call("Network.emulateNetworkConditions", offline=True, **nothing)

    def close(self) -> None:
        """End the browser."""
        self.call("Browser.close")
        self._process.wait(SECONDS)
        for end in (self._commands, self._answers):
            os.close(end)

    # ---- what a reader does ----

    def open(self, page: Path | str, width: int, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Load a file or an address in a window of this size, as on a phone if it is narrow."""
        phone = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setScriptExecutionDisabled", value=not script)
        self.problems.clear()
        self.requests.clear()
        self._events.clear()
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def value(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press the mouse at a point, move it and let go."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def swipe(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The same with a finger, in small moves."""
        self._touch("touchStart", start)
        for step in range(1, 11):
            self._touch("touchMove", tuple(a + (b - a) * step / 10 for a, b in zip(start, end, strict=True)))
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, code: int) -> None:
        """Press a key; code: its Windows virtual key code."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        image = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(image["data"]))

    def _touch(self, kind: str, point: tuple[float, float]) -> None:
        x, y = point
        self.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])

    # ---- protocol ----

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; events that come before are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            pass
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while event not in self._events:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        """The next message of the browser; events are noted."""
        end = time.monotonic() + SECONDS
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._answers], [], [], end - time.monotonic())
            assert ready, "the browser does not answer"
            received = os.read(self._answers, 1 << 20)
            assert received, "the browser has ended"
            self._received += received
        message, _, self._received = self._received.partition(b"\0")
        self._note(answer := json.loads(message))
        return answer

    def _note(self, message: dict[str, Any]) -> None:
        name, content = message.get("method", ""), message.get("params", {})
        self._events.append(name)
        if name == "Network.requestWillBeSent":
            self.requests.append(content["request"]["url"])
        failed = name == "Runtime.consoleAPICalled" and content["type"] in ("error", "warning", "assert")
        if failed or name in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.problems.append(json.dumps(content))


def _pipe(_: int) -> tuple[int, int]:
    """Both ends of a pipe, above the descriptors that the browser takes."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved
