"""One engine's ejection, and how much of its load it gets: none, one exchange at a time, a part, all.

    IN --eject--> OUT --time is over--> PROBATION --3 good, or its time is over--> IN (slow start)
                   ^---- a failure -----'

The k-th ejection lasts min(base x k, max) + jitter seconds (Envoy); k falls by one for each interval without.
On probation one exchange at a time is tried. Probation has an end of its own, so that no engine stays out for
want of traffic, and holds the ejection's place under the cap, so that a cap in engines is one in capacity.
Slow start: of its share an engine gets max(10 %, seconds since its return / window) (Envoy, aggression 1).
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

PROBES: Final = 3
_LEAST_SHARE: Final = 0.1
_AT_LEAST_ONE_FROM: Final = 3  # members


class Terms(NamedTuple):
    """Named like the keys of the configuration. `probes` must go well on probation; 0: there is none."""

    base_ejection_time_s: float = 30.0
    max_ejection_time_s: float = 300.0
    slow_start_s: float = 30.0
    probes: int = PROBES


class State(Enum):
    IN = "in"
    OUT = "out"
    PROBATION = "probation"


class Ejection:
    """Told the time, which must not go back. `until` ends what `state` says, unless it is IN."""

    __slots__ = ("_good", "_probe", "_returned", "_terms", "_trying", "state", "times", "until")

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self.state = State.IN
        self.times = 0  # k, of the last ejection
        self.until = 0.0
        self._returned: float | None = None
        self._good = 0
        self._probe = 0  # the last one's number
        self._trying = False

    @property
    def is_out(self) -> bool:
        """Ejected or on probation: it takes a place under the cap."""
        return self.state is not State.IN

    @property
    def next_s(self) -> float:
        """How long the next ejection will last, less jitter."""
        terms = self._terms
        return min(terms.base_ejection_time_s * self._next_times(), terms.max_ejection_time_s)

    @property
    def longest_s(self) -> float:
        """How long, from now on, its place under the cap may be needed if it is ejected, less jitter."""
        return self.next_s + (self._terms.base_ejection_time_s if self._terms.probes else 0.0)

    @property
    def free_at(self) -> float:
        """When its place under the cap is no longer needed, unless it is ejected again; it is out."""
        more = self.state is State.OUT and self._terms.probes
        return self.until + (self._terms.base_ejection_time_s if more else 0.0)

    def eject(self, now: float, jitter_s: float = 0.0) -> bool:
        """False: it is ejected already, and nothing changes."""
        if self.state is State.OUT:
            return False
        self.until = now + self.next_s + jitter_s
        self.times = self._next_times()
        self.state = State.OUT
        return True

    def pass_time(self, now: float) -> bool:
        """What is over by `now` ends; True when the state changed."""
        if self.state is State.IN or now < self.until:
            return False
        if self.state is State.OUT and self._terms.probes:
            self.state = State.PROBATION
            self.until = now + self._terms.base_ejection_time_s
            self._good = 0
            self._trying = False
        else:
            self.end(now)
        return True

    def end(self, now: float) -> None:
        """It is back, with slow start; how often it was ejected is remembered."""
        self.state = State.IN
        self._returned = now

    def try_one(self) -> int:
        """On probation: the number of the exchange that may be tried, 0: one is under way, or it is not."""
        if self.state is not State.PROBATION or self._trying:
            return 0
        self._trying = True
        self._probe += 1
        return self._probe

    def on_tried(self, probe: int, good: bool | None, now: float) -> bool:
        """How exchange `probe` went, None: it says nothing. False: it failed, so that `eject` is due.

        What began on an earlier probation says nothing.
        """
        if self.state is not State.PROBATION or not self._trying or probe != self._probe:
            return True
        self._trying = False
        if good:
            self._good += 1
            if self._good >= self._terms.probes:
                self.end(now)
        return good is not False

    def forgive(self, now: float, interval_s: float) -> None:
        """Once in an interval: whoever was in for all of it will be ejected for less time."""
        if self.state is State.IN and self._returned is not None and now - self._returned >= interval_s:
            self.times = max(self.times - 1, 0)

    def share(self, now: float) -> float:
        """Of the load it would get if nothing had happened, 0 to 1."""
        if self.state is State.OUT:
            return 0.0
        if self.state is State.PROBATION:
            return _LEAST_SHARE
        window = self._terms.slow_start_s
        if self._returned is None or not window:
            return 1.0
        return min(max((now - self._returned) / window, _LEAST_SHARE), 1.0)

    def _next_times(self) -> int:
        """No more than it takes to reach the maximum, lest forgiving takes as long as the trouble did."""
        base = self._terms.base_ejection_time_s
        return self.times + (self.times * base < self._terms.max_ejection_time_s + base)


def most_out(members: int, percent: float) -> int:
    """How many of so many engines may be out at once: of three and more always one."""
    return max(int(min(percent, 100) * members // 100), int(members >= _AT_LEAST_ONE_FROM))


def is_panic(well: int, members: int, threshold_percent: float) -> bool:
    """Whether so few are well that ejections are ignored, as the fault is not the engines' (0 %: never)."""
    return 100 * well < threshold_percent * members
