"""Errors that are the user's to mend: shown as one line, without a traceback."""

import sys


class UserError(ValueError):
    """Bad input; the message names the file, field or value and what to do."""


def tell(error: Exception) -> None:
    """Show it, in one write: lines of several processes are not to run into each other."""
    sys.stderr.write(f"diffgan: error: {error}\n")
