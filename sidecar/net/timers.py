"""Coarse timers for the data plane: a hashed timing wheel (Varghese and Lauck 1987).

A timer stands in the bucket of the 50 ms tick after it is due, or, when that is further away than the
horizon, in the bucket there, and from there again: so the number of buckets is bounded, whatever
callers ask for. Adding and cancelling are one dictionary operation, against about 1 us for an
`asyncio` handle. `advance` is called by the application's tick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

TICK_S: Final = 0.05
HORIZON: Final = 1200  # ticks: a minute

log = logging.getLogger("headgate.timers")


class Timer:
    """One call to come. Keep it to cancel it."""

    __slots__ = ("_arg", "_call", "bucket", "due")

    def __init__(
        self, due: int, call: Callable[[Any], None], arg: object, bucket: dict[Timer, None]
    ) -> None:
        self.due = due  # the tick
        self.bucket = bucket
        self._call = call
        self._arg = arg
        bucket[self] = None

    def cancel(self) -> None:
        """Forget it. Safe to call twice, and after it was called."""
        self.bucket.pop(self, None)

    def run(self) -> None:
        self._call(self._arg)


class Timers:
    """The wheel. `now` is its owner's monotonic clock."""

    __slots__ = ("_buckets", "_now", "_tick")

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._tick = int(now() / TICK_S)
        self._buckets: dict[int, dict[Timer, None]] = {}

    @property
    def pending(self) -> int:
        """How many calls are to come. Safe to ask from any thread."""
        return sum(map(len, list(self._buckets.values())))

    def after(self, seconds: float, call: Callable[[Any], None], arg: object) -> Timer:
        """Call `call(arg)` in `seconds`, or up to two ticks later."""
        due = int((self._now() + seconds) / TICK_S) + 1
        if due <= self._tick:
            due = self._tick + 1
        return Timer(due, call, arg, self._bucket(due))

    def _bucket(self, due: int) -> dict[Timer, None]:
        tick = self._tick + HORIZON
        if due < tick:
            tick = due
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
        return bucket

    def advance(self) -> None:
        """Call what is due. A call that raises is logged and stops no other."""
        until = int(self._now() / TICK_S)
        if until - self._tick > len(self._buckets):  # late: rather look at the buckets than at the ticks
            due = sorted(tick for tick in self._buckets if tick <= until)
        else:
            due = [tick for tick in range(self._tick + 1, until + 1) if tick in self._buckets]
        self._tick = until
        for tick in due:
            bucket = self._buckets.pop(tick)
            while bucket:
                timer, _ = bucket.popitem()
                if timer.due > until:
                    timer.bucket = self._bucket(timer.due)
                    timer.bucket[timer] = None
                    continue
                try:
                    timer.run()
                except Exception:
                    log.exception("a timer failed")
