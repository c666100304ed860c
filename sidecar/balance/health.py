"""From single checks to healthy or not, and to the next one, by Envoy's rules (health_checker_base_impl.cc).

1. The first result decides at once, whatever the thresholds say.
2. A failure that was said (an answer, and not that it serves) makes unhealthy at once. One that was suffered
   (no connection, no answer in time) is counted: the `unhealthy_threshold`th in a row makes unhealthy.
3. The `healthy_threshold`th success in a row makes healthy. A success forgets the failures that were counted,
   a failure the successes.
4. The next check comes after

                      the verdict agrees     a threshold is being counted
     after a success  interval               healthy_edge_interval
     after a failure  unhealthy_interval     unhealthy_edge_interval

   and never sooner than after a millisecond.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

_FLOOR_S: Final = 0.001


class Check(Enum):
    """What one health check found."""

    SERVING = "serving"
    NOT_SERVING = "not serving"
    UNREACHABLE = "unreachable"


class Rules(NamedTuple):
    """Thresholds in results, intervals in seconds."""

    unhealthy_threshold: int = 2
    healthy_threshold: int = 1
    interval_s: float = 5.0
    unhealthy_interval_s: float = 0.2
    unhealthy_edge_interval_s: float = 0.2
    healthy_edge_interval_s: float = 5.0


class HealthState:
    """Counts results; `healthy` is the verdict, and until the first result what it was before."""

    __slots__ = ("_failures", "_first", "_rules", "_serving", "_successes", "healthy")

    def __init__(self, rules: Rules, healthy: bool = False) -> None:
        self.healthy = healthy
        self._rules = rules
        self._first = True
        self._serving = healthy
        self._failures = self._successes = 0  # in a row, while they may turn the verdict

    def on_check(self, result: Check) -> bool:
        """Take a result; True when the verdict changed, or is the first."""
        before, first = self.healthy, self._first
        self._first = False
        self._serving = result is Check.SERVING
        if self._serving:
            self._failures = 0
            if not before:
                self._successes += 1
                self.healthy = first or self._successes == self._rules.healthy_threshold
        else:
            self._successes = 0
            if before:
                self._failures += 1
                counted = self._failures == self._rules.unhealthy_threshold
                self.healthy = not (first or counted or result is Check.NOT_SERVING)
        return first or self.healthy != before

    @property
    def pause_s(self) -> float:
        """Seconds from the last result to the next check, without jitter."""
        rules = self._rules
        if self._serving:
            pause = rules.interval_s if self.healthy else rules.healthy_edge_interval_s
        else:
            pause = rules.unhealthy_edge_interval_s if self.healthy else rules.unhealthy_interval_s
        return max(pause, _FLOOR_S)


class Backoff:
    """Pauses between calls that end, each 1.6 times the one before (gRPC's connection-backoff.md)."""

    __slots__ = ("_first_s", "_most_s", "_next_s")

    def __init__(self, first_s: float = 1.0, most_s: float = 30.0) -> None:
        self._first_s = self._next_s = first_s
        self._most_s = most_s

    def pause_s(self) -> float:
        """Seconds until the next call, without jitter."""
        pause = self._next_s
        self._next_s = min(pause * 1.6, self._most_s)
        return pause

    def reset(self) -> None:
        """A call was of use: begin again with the shortest pause."""
        self._next_s = self._first_s
