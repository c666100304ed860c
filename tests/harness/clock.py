"""Clocks that a test turns: time passes when it says so, and chance is what it says."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class FakeClock:
    """A `sidecar.clock.Clock` that stands still until it is advanced."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._tokens = 0

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return 1_700_000_000.0 + self._now

    def jitter(self, value: float, share: float) -> float:
        """The largest it can be, so that a test sees where it was applied."""
        return value * (1.0 + share)

    def token(self) -> bytes:
        """1, 2, 3, … in 32 hex digits."""
        self._tokens += 1
        return b"%032x" % self._tokens

    def advance(self, seconds: float) -> None:
        self._now += seconds


class _Jumping(selectors.DefaultSelector):
    """Where a real selector would wait for time to pass, time passes at once."""

    skipped = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(None if timeout is None else 0)
        if not ready and timeout is not None:
            self.skipped += timeout
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that sleeps in no time: when nothing can be read, it is the next timer's turn.

    Both ends of every connection must live in this one loop, or the other end is overtaken by time.
    """

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.skipped


def run(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on a JumpingLoop."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main)
