"""Errors that are the user's to mend: shown as one line, without a traceback."""

import sys


class UserError(ValueError):
    """Bad input; the message names the file, field or value and what to do."""


def print_error(error: Exception) -> None:
    """Print an error as one line, in one write: lines of several processes must not run into each other."""
    sys.stderr.write(f"diffgan: error: {error}\n")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]
