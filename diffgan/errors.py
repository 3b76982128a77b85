"""Errors that the user can fix. They are shown as one line, without a traceback."""

import sys


class UserError(ValueError):
    """Invalid input; the message names the file, field or value and the remedy."""


def print_error(error: Exception) -> None:
    """Print an error as one line, with a single write so that the lines of several processes do not mix."""
    sys.stderr.write(f"diffgan: error: {error}\n")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if the message is empty."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: BaseException) -> str:
    """What went wrong, as one line without a full stop: the system's description, else the error's message.

    An error without either is described by the name of its class.
    """
    message = getattr(error, "strerror", None) or str(error)
    lines = message.splitlines() or [""]
    return lines[0].rstrip(".;") or type(error).__name__
