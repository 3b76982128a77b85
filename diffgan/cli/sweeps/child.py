"""A command of `diffgan` in a forked process: it starts at once, and what it leaves behind ends with it."""

import multiprocessing
import signal
import sys
from collections.abc import Sequence
from typing import Any

from diffgan.cli.main import main
from diffgan.errors import UserError, print_error

PASSED_ON = {signal.SIGTERM}


def run_in_child(words: Sequence[str]) -> bool:
    """Run `diffgan WORDS` in a forked process; False if it failed, and a line says why.

    This process must not have computed with tensors, nor used a GPU: their threads are not forked.

    Raises:
        SystemExit: the command was interrupted, by Ctrl-C or SIGTERM, which is passed on to it.
    """
    child = multiprocessing.get_context("fork").Process(target=_run, args=(list(words),))
    with _PassedOn(child) as signals:
        signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # in the child until it has handlers of its own
        child.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        if signals.terminated:  # just before the child was there
            child.terminate()
        child.join()
    if signals.terminated:
        raise SystemExit(128 + signal.SIGTERM)
    if child.exitcode in (-signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT):
        raise SystemExit(128 + abs(child.exitcode) % 128)
    if child.exitcode < 0:  # it could not say so itself
        print_error(UserError(f"`diffgan {words[0]}` was killed by signal {-child.exitcode}; out of memory?"))
    return child.exitcode == 0


def _run(words: list[str]) -> None:
    """What the forked process does."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    sys.argv[1:] = words  # what Lightning starts further processes with
    main(words)


class _PassedOn:
    """Signals to this process go to a child, which ends in order; this process then does."""

    def __init__(self, child: multiprocessing.Process):
        self.child, self.before, self.terminated = child, {}, False

    def __enter__(self) -> "_PassedOn":
        self.before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._terminate)
        self.before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both
        return self

    def __exit__(self, *exception: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _terminate(self, number: int, frame: Any) -> None:
        self.terminated = True
        if self.child.is_alive():
            self.child.terminate()
