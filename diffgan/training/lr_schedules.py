"""Learning-rate schedules, as factors of the optimizer's learning rate."""

import math
from collections.abc import Callable


def warmup_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Linear rise over `warmup`, then a cosine to zero at `total`.

    Args:
        warmup, total: in any unit, such as steps or images.

    Returns:
        Function of the units done so far, with values in [0, 1].
    """

    def factor(now: int) -> float:
        if now < warmup:
            return (now + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (now - warmup) / max(1, total - warmup))))

    return factor


def warmup_cooldown(warmup: int, cooldown: int, total: int) -> Callable[[int], float]:
    """Linear rise over `warmup`, constant, then linear fall to zero over the last `cooldown` of `total`.

    Args:
        warmup, cooldown, total: in any unit, such as steps or images.

    Returns:
        Function of the units done so far, with values in [0, 1].
    """

    def factor(now: int) -> float:
        return max(0.0, min(1.0, (now + 1) / max(1, warmup), (total - now) / max(1, cooldown)))

    return factor


def scaled_from(start: int, scale: float, factor: Callable[[int], float]) -> Callable[[int], float]:
    """The schedule `factor`, multiplied by `scale` from `start` on."""
    return lambda now: factor(now) * (scale if now >= start else 1.0)
