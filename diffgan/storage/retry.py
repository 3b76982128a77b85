"""Requests to a remote service: retried after transient failures, otherwise failed with one line."""

import errno
import random
import re
import sys
import time
from collections.abc import Callable
from typing import NoReturn, TypeVar

from diffgan.errors import UserError, reason

Result = TypeVar("Result")

WAITS = (0.5, 1, 2, 4, 8, 16, 32)  # seconds before each retry
PERMANENT = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
PERMANENT_CODES = (
    *(errno.EINVAL, errno.EPERM, errno.EACCES, errno.ENAMETOOLONG, errno.ENOSYS),  # the request is wrong
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE),  # this machine has a problem
)
BUGS = (TypeError, AttributeError, NameError, LookupError, AssertionError)
TRANSIENT_NAMES = re.compile(
    r"Timeout|Connect|Disconnect|Payload|Incomplete|Transport|ProtocolError|ResponseParser|Checksum"
)
DENIED_NAMES = re.compile(r"Credential|Permission|Unauthorized|Forbidden|Gated")
JITTER = random.SystemRandom()  # so that many clients that were throttled together do not retry together


def with_retries(url: str, request: Callable[[], Result]) -> Result:
    """Call `request` until it succeeds; retried after the waits `WAITS` if the failure is transient.

    Args:
        url: named in messages.
        request: takes no arguments and can be called again.

    Raises:
        FileNotFoundError, FileExistsError: as raised by the request.
        UserError: the service refuses, or all retries failed (about a minute); names the URL, the reason and a remedy.
    """
    for attempt, wait in enumerate((*WAITS, None), 1):
        try:
            return request()
        except (FileNotFoundError, FileExistsError, UserError, *BUGS):
            raise
        except Exception as error:
            if wait is None or not is_transient(error):
                _fail(url, error, attempt)
            wait *= JITTER.uniform(0.5, 1)
            progress = f"trying again in {wait:.1f} s ({attempt} of {len(WAITS)})"
            print(f"diffgan: {url}: {reason(error)}; {progress}", file=sys.stderr, flush=True)
        time.sleep(wait)


def is_transient(error: Exception) -> bool:
    """Whether a retry may succeed: the network failed, or the service is throttling or temporarily unavailable."""
    if (status := _http_status(error)) is not None:
        return status in (408, 429) or status >= 500
    if isinstance(error, OSError):
        return not isinstance(error, PERMANENT) and error.errno not in PERMANENT_CODES
    return _class_name_matches(error, TRANSIENT_NAMES)


def _fail(url: str, error: Exception, attempts: int) -> NoReturn:
    denied = isinstance(error, PermissionError) or _http_status(error) in (401, 403)
    if denied or _class_name_matches(error, DENIED_NAMES):
        advice = "give credentials with access, in the environment or the configuration file of the service's own tools"
    elif is_transient(error):
        advice = f"{attempts} attempts failed; run the same command again when the service is available"
    else:
        advice = "name a folder that can be reached, and run the same command again"
    raise UserError(f"{url}: {reason(error)}; {advice}") from error


def _http_status(error: Exception) -> int | None:
    """The HTTP status of an error; every HTTP library stores it in another attribute."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            value = str(getattr(holder, name, None))
            if value.isdecimal():
                return int(value)
    return None


def _class_name_matches(error: Exception, names: re.Pattern) -> bool:
    return any(names.search(kind.__name__) for kind in type(error).__mro__)
