"""Errors that are the user's to mend: shown as one line, without a traceback."""


class UserError(ValueError):
    """Bad input; the message names the file, field or value and what to do."""
