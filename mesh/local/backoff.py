"""When a part that died is started again.

A life is *short* if the part was never ready or died within 5 s of its start. After the n-th short life in a
row the wait is 0.25 s · 2^(n-1), at most 5 s; after the fifth there is none: something is wrong that starting
again does not repair. A longer life forgives all short ones before it.
"""

from typing import Final

FIRST_S: Final = 0.25
MOST_S: Final = 5.0
SHORT_S: Final = 5.0
MOST_SHORT_LIVES: Final = 5


class Backoff:
    """The record of one part."""

    __slots__ = ("_short_lives",)

    def __init__(self) -> None:
        self._short_lives = 0

    def after(self, lived_s: float, *, was_ready: bool) -> float | None:
        """Seconds to wait after a life of `lived_s`; None: give up."""
        if was_ready and lived_s >= SHORT_S:
            self._short_lives = 0
            return FIRST_S
        self._short_lives += 1
        if self._short_lives == MOST_SHORT_LIVES:
            return None
        wait_s: float = FIRST_S * 2 ** (self._short_lives - 1)
        return min(MOST_S, wait_s)
