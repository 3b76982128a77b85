"""Requests to a remote service: made again while that may help, then refused in one line."""

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from diffgan.errors import UserError

Answer = TypeVar("Answer")

WAITS = (0.5, 1, 2, 4, 8, 16, 32)  # seconds before a request is made again
LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
LASTING_CODES = (
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.ENOSYS),  # the request is wrong
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE),  # this machine is
)
OURS = (TypeError, AttributeError, NameError, LookupError, AssertionError, NotImplementedError)  # mistakes of programs
PASSING_NAMES = re.compile(
    r"Timeout|Connect|Disconnect|Payload|Incomplete|Transport|ProtocolError|ResponseParser|Checksum"
)
DENIED_NAMES = re.compile(r"Credential|Permission|Unauthorized|Forbidden|Gated")
JITTER = random.SystemRandom()  # many readers that were throttled together must not come back together


def with_retries(url: str, request: Callable[[], Answer]) -> Answer:
    """The answer to a request about `url`; it is made again as long as what goes wrong may pass.

    Raises:
        FileNotFoundError, FileExistsError: as the service says.
        UserError: the service refuses, or did not answer for a minute; names the URL, the reason and what to do.
    """
    for attempt, wait in enumerate((*WAITS, None), 1):
        try:
            return request()
        except (FileNotFoundError, FileExistsError, UserError, *OURS):
            raise
        except Exception as error:
            if wait is None or not may_pass(error):
                _refuse(url, error, attempt)
            wait *= JITTER.uniform(0.5, 1)
            told = f"trying again in {wait:.1f} s ({attempt} of {len(WAITS)})"
            print(f"diffgan: {url}: {reason(error)}; {told}", file=sys.stderr, flush=True)
        time.sleep(wait)


def may_pass(error: Exception) -> bool:
    """Whether a failure may pass by itself: the network's, or of a service that throttles or is in trouble."""
    if (status := _status(error)) is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError):
        return not isinstance(error, LASTING) and error.errno not in LASTING_CODES
    return bool(_named(error, PASSING_NAMES))


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    told = getattr(error, "strerror", None) or str(error)
    return next(iter(told.splitlines()), "").rstrip(".;") or type(error).__name__


def _refuse(url: str, error: Exception, attempts: int) -> NoReturn:
    if isinstance(error, PermissionError) or _status(error) in (401, 403) or _named(error, DENIED_NAMES):
        advice = "give credentials that may, in the environment or the configuration file of the service's own tools"
    elif may_pass(error):
        advice = f"{attempts} attempts failed; run the same command when the service answers"
    else:
        advice = "name a folder that can be reached, and run the same command"
    raise UserError(f"{url}: {reason(error)}; {advice}") from error


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error of any of the libraries."""
    response = getattr(error, "response", None)
    found = (getattr(holder, name, None) for holder in (error, response) for name in ("status", "status_code", "code"))
    return next((int(value) for value in found if str(value).isdecimal()), None)


def _named(error: Exception, names: re.Pattern) -> bool:
    return any(names.search(kind.__name__) for kind in type(error).__mro__)
