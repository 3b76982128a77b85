"""Work that goes on beside the main thread, so that writing overlaps with computing."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch


class WriterThread:
    """Calls made one after another in a thread of their own; at most `most` of them wait.

    What a call raises, a later `submit`, `check` or `finish` raises.
    """

    def __init__(self, most: int = 2):
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))  # the rest computes
        self._calls: deque[Future] = deque()
        self._most = most

    def submit(self, call: Callable[[], None]) -> None:
        """Have a call made; waits while too many do."""
        self.check()
        while len(self._calls) >= self._most:
            self._calls.popleft().result()
        self._calls.append(self._thread.submit(call))

    def check(self) -> None:
        """Raises what a call has raised."""
        while self._calls and self._calls[0].done():
            self._calls.popleft().result()

    def finish(self) -> None:
        """Wait for all calls."""
        while self._calls:
            self._calls.popleft().result()

    def close(self) -> None:
        """Wait for all calls, whatever they raise, and end the thread."""
        self._thread.shutdown(wait=True)
        self._calls.clear()
