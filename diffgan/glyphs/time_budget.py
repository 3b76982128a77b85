"""A training whose length is given in seconds: its learning rate is a function of the share that has passed."""

import time
from collections.abc import Callable

from diffgan.errors import UserError


class TimeBudget:
    """Seconds that a training may take, from `start` on.

    A schedule in steps would have to know the speed of the machine; a training cut off at a time would end without its
    cooldown. Two runs make different numbers of steps, so they are not equal.

    Args:
        seconds: above 0.
        clock: seconds from any origin.

    Raises:
        UserError: `seconds` is not above 0.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        if not seconds > 0:
            raise UserError(f"seconds: {seconds} must be above 0")
        self.seconds, self._clock = seconds, clock
        self._started: float | None = None

    def start(self) -> None:
        """Start the clock, again if it has been started."""
        self._started = self._clock()

    @property
    def share(self) -> float:
        """Share of the time that has passed, 0 before the start; above 1 once the time is over."""
        return 0.0 if self._started is None else (self._clock() - self._started) / self.seconds

    def schedule(self, warmup: int, cooldown: float) -> Callable[[int], float]:
        """`warmup_cooldown` over this time.

        Args:
            warmup: length of the linear rise, in steps.
            cooldown: length of the linear fall to zero, as a share of the time.

        Returns:
            Function of the steps done so far, which reads the clock; its values are in [0, 1].
        """

        def factor(now: int) -> float:
            rising = (now + 1) / max(1, warmup)
            falling = (1 - self.share) / cooldown if cooldown > 0 else 1.0
            return max(0.0, min(1.0, rising, falling))

        return factor
