"""From single checks to healthy or not, with Envoy's thresholds.

The first result decides at once. After that two failures in a row make an endpoint unhealthy and
one success makes it healthy again. An endpoint that says itself that it does not serve is believed
at once (Envoy's "active" failure), where a lost connection has to be counted.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

UNHEALTHY_AFTER: Final = 2


class Check(Enum):
    """What one health check found."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    UNREACHABLE = "unreachable"


class HealthState:
    """Counts results; `healthy` is the verdict, and until the first result what it was before."""

    __slots__ = ("_failures", "_first", "healthy")

    def __init__(self, healthy: bool = False) -> None:
        self.healthy = healthy
        self._first = True
        self._failures = 0

    def on_check(self, result: Check) -> bool:
        """Take a result; True when the verdict changed."""
        before = self.healthy
        if result is Check.SERVING:
            self._failures = 0
            self.healthy = True
        else:
            self._failures += 1
            if self._first or result is Check.NOT_SERVING or self._failures >= UNHEALTHY_AFTER:
                self.healthy = False
        changed = self._first or self.healthy != before
        self._first = False
        return changed
