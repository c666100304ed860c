"""Time and chance: the only module that imports `time` and `random`.

Everything else is handed a `Clock`, so that a test decides what time it is.
"""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock(Protocol):
    """What the data plane needs of the world's clock and dice."""

    def now(self) -> float:
        """Monotonic seconds; only differences mean anything."""
        ...

    def wall(self) -> float:
        """Seconds since the epoch, for logs alone: wall time jumps."""
        ...

    def jitter(self, value: float, share: float) -> float:
        """`value` stretched by up to `share` of itself, evenly drawn."""
        ...

    def token(self) -> bytes:
        """32 hex digits nobody else has drawn: a request id, not a secret."""
        ...


class Timer(Protocol):
    """Something that will be called, unless it is cancelled."""

    def cancel(self) -> None: ...


class Alarms(Protocol):
    """Where one gets called later."""

    def after(self, seconds: float, call: Callable[[Any], None], arg: object) -> Timer:
        """Call `call(arg)` in `seconds`, or a little later."""
        ...


class SystemClock:
    """The real one."""

    def __init__(self) -> None:
        self._drawn = b"%016x" % random.getrandbits(64)
        self._count = itertools.count(random.getrandbits(32)).__next__

    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)  # noqa: TID251 - this is the clock

    @staticmethod
    def jitter(value: float, share: float) -> float:
        return value * (1.0 + share * random.random())

    def token(self) -> bytes:
        return b"%b%016x" % (self._drawn, self._count())
