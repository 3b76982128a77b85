"""Learning-rate schedules, as factors of the optimizer's own rate."""

import math
from collections.abc import Callable


def warmup_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Linear rise over `warmup` units, then half a cosine to zero at `total` (units: steps or images)."""

    def factor(now: int) -> float:
        if now < warmup:
            return (now + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (now - warmup) / max(1, total - warmup))))

    return factor


def warmup_cooldown(warmup: int, cooldown: int, total: int) -> Callable[[int], float]:
    """Linear rise over `warmup` units, constant, then linear fall to zero over the last `cooldown` units of `total`."""

    def factor(now: int) -> float:
        return max(0.0, min(1.0, (now + 1) / max(1, warmup), (total - now) / max(1, cooldown)))

    return factor
