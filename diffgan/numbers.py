"""Bounds of numbers that users give. Each is written so that NaN fails, and infinity is within none."""

import math

from diffgan.errors import UserError

MOST_AT_ONCE = 2**16  # rows of a batch; more are a mistake on every machine
MOST_WORKERS = 512  # processes that load data


def require(
    name: str,
    value: float,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> None:
    """Refuse a number that is not finite or not within bounds.

    Args:
        name: of the option or argument, for the message.
        value: the number.
        least, most: bounds that the number may have.
        above, below: bounds that it may not have.

    Raises:
        UserError: "name: value must be at least 1 and at most 65536".
    """
    bounds = {
        "at least": (least, lambda bound: value >= bound),
        "above": (above, lambda bound: value > bound),
        "at most": (most, lambda bound: value <= bound),
        "below": (below, lambda bound: value < bound),
    }
    given = {words: (bound, holds) for words, (bound, holds) in bounds.items() if bound is not None}
    if math.isfinite(value) and all(holds(bound) for bound, holds in given.values()):
        return
    words = [f"{words} {bound}" for words, (bound, _) in given.items()]
    raise UserError(f"{name}: {value} must be {' and '.join(words if math.isfinite(value) else [*words, 'finite'])}")


def require_batch_size(name: str, value: int) -> None:
    """Raises UserError if a number of rows at once is out of range."""
    require(name, value, least=1, most=MOST_AT_ONCE)


def require_workers(name: str, value: int) -> None:
    """Raises UserError if a number of loading processes is out of range; 0 loads in the process itself."""
    require(name, value, least=0, most=MOST_WORKERS)


def require_guidance(name: str, value: float) -> None:
    """Raises UserError if a scale of classifier-free guidance is out of range; 0 ignores the prompt, 1 is none."""
    require(name, value, least=0)
