"""A thread that writes finished batches, so that writing overlaps with computing."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class WriterThread:
    """Runs calls one after another in one thread.

    What a call raises is raised by a later `submit`, `check` or `finish`.

    Args:
        max_waiting: how many calls may wait, the running one included; `submit` blocks while there are more.
    """

    def __init__(self, max_waiting: int = 2):
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # the rest computes
        self._calls: deque[Future] = deque()
        self._max_waiting = max_waiting

    def submit(self, call: Callable[[], None]) -> None:
        """Run a call in the thread, after those submitted before; blocks while too many wait."""
        self.check()
        while len(self._calls) >= self._max_waiting:
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(call))

    def check(self) -> None:
        """Raise what a finished call has raised."""
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()

    def finish(self) -> None:
        """Wait for all calls; raises what one of them has raised."""
        while self._calls:
            self._calls.popleft().result()

    def close(self) -> None:
        """Wait for all calls, ignore what they raise, and end the thread."""
        self._thread.shutdown(wait=True)
        self._calls.clear()
