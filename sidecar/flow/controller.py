"""How full the engine may be: a limit on KV tokens, found from what tokens show.

Twice a second, from one window's signals, in this order:

    inter-token p90 > 0.9 objective         limit x max(0.7, 0.9 objective / p90)
    preemptions, or KV in use > 0.95        limit x 0.92
    somebody waits here (bound), and
      the engine's own queueing d > 50 ms   limit x max(0.7, 1 - 0.3 (d - 50) / 50)
      e unknown or >= 0.1                   limit + 2 % of the KV cache, if 0.7 of it are used
      -0.1 <= e < 0.1                       as it is
      e < -0.1                              limit - 2 %

where e = cov(ln work/s, ln running) / var(ln running), from exponential moments over about 20 windows: single
ones are noise, since prompts and answers cost differently. It is unknown while the number that runs hardly
changes. A cut leaves nine tenths of what is used, and a second goes by before another: tokens of what was
dispatched before it come late whatever one does.

The latency of whole requests says nothing here: it follows the length of answers. The objective is absolute,
and no baseline is learnt, since a controller of ratios takes a bad steady state for the best there is. Of a
KV cache whose size nobody told, the limit may grow beyond the guess for as long as that helps.
"""

from __future__ import annotations

from math import log
from typing import Final, NamedTuple

_START: Final = 0.85  # of the cache
_LEAST: Final = 0.1
_MOST: Final = 1.2
_MOST_UNKNOWN: Final = 128.0
_STEP: Final = 0.02
_GENTLY: Final = 0.9  # of what runs stays allowed after a cut
_USED: Final = 0.7  # of the limit must be used for it to be what binds: lower classes fill only a part of it
_REST: Final = 2
_FLAT: Final = 0.1
_MEMORY: Final = 0.05  # of the moments, a window
_SPREAD: Final = 0.05  # of ln running, below which the elasticity means nothing
_ENOUGH: Final = 24  # windows before it is believed


class Window(NamedTuple):
    """What was seen in one window. None: nobody could see it."""

    work: float  # tokens a second, weighted as in `ticket`
    running: float  # mean number
    itl_ms: float | None  # 90th percentile over streams
    objective_ms: float  # the strictest among those that run
    bound: bool  # somebody waited all the time
    room: float = 0.0  # KV tokens set aside for what runs; 0: not known
    delay_ms: float | None = None  # between what the engine was given and when it began on it
    preempted: int = 0
    kv_used: float | None = None  # 0 to 1


class Heard(NamedTuple):
    """What the engine says of itself, when that is fresh. None: it does not say."""

    kv_used: float | None = None  # 0 to 1
    kv_tokens: int | None = None  # that its cache holds
    preemptions: int | None = None  # since it started


class Controller:
    """`limit` in KV tokens, of `capacity`."""

    __slots__ = ("_known", "_moments", "_rest", "capacity", "limit", "why")

    def __init__(self, capacity: float, *, known: bool, fraction: float = _START) -> None:
        self.capacity = capacity
        self._known = known
        self.limit = 0.0
        self._moments = _Moments()
        self._rest = 0  # windows that show what was before the last cut
        self.why = "start"  # what moved the limit last
        self.fraction = fraction

    @property
    def fraction(self) -> float:
        """The limit as a part of the capacity: what is worth remembering over a restart."""
        return self.limit / self.capacity

    @fraction.setter
    def fraction(self, value: float) -> None:
        most = _MOST if self._known else _MOST_UNKNOWN
        self.limit = self.capacity * min(max(value, _LEAST), most)

    def remember(self, capacity: float, fraction: float) -> None:
        """Go on with a limit that was found when the cache held `capacity`."""
        if self._known:
            fraction *= capacity / self.capacity
        else:
            self.capacity = capacity  # until the engine says it
        self.fraction = fraction

    def learn_capacity(self, tokens: float) -> None:
        """The engine has said how much its cache holds; the limit keeps its part of it."""
        if not self._known or tokens != self.capacity:
            fraction = min(self.fraction, _MOST)
            self._known, self.capacity = True, tokens
            self.fraction = fraction

    def on_window(self, window: Window) -> bool:
        """Move the limit; True when it was lowered for congestion."""
        elasticity = self._learn(window)
        self._rest = max(self._rest - 1, 0)
        part = self._congestion(window)
        if part < 1:
            # A limit far below what runs would let nobody in for seconds.
            self._set(max(self.limit * part, min(window.room * _GENTLY, self.limit)))
            self._rest = _REST
            return True
        if window.room and window.room < self.limit * _USED:
            return False  # something else binds
        if window.bound and (elasticity is None or elasticity >= _FLAT):
            self.why = "probing"
            self._set(self.limit + _STEP * self.capacity)
        elif window.bound and elasticity is not None and elasticity < -_FLAT:
            self.why = "no gain"
            self._set(self.limit - _STEP * self.capacity)
        return False

    def _congestion(self, window: Window) -> float:
        """The part of the limit that should be left of it."""
        itl, most_itl, delay = window.itl_ms, 0.9 * window.objective_ms, window.delay_ms
        if self._rest:
            return 1.0
        if itl is not None and itl > most_itl:
            self.why = "inter-token latency"
            return max(0.7, most_itl / itl)
        if window.preempted or (window.kv_used is not None and window.kv_used > 0.95):
            self.why = "preemption"
            return 0.92
        if window.bound and delay is not None and delay > 50:
            self.why = "engine queue"
            return max(0.7, 1 - 0.3 * (delay - 50) / 50)
        return 1.0

    def _set(self, limit: float) -> None:
        self.fraction = limit / self.capacity

    def _learn(self, window: Window) -> float | None:
        if not window.bound or min(window.work, window.running) <= 0:
            return self._moments.elasticity
        self._moments.add(log(window.running), log(window.work))
        return self._moments.elasticity


class _Moments:
    """Exponentially weighted mean, variance and covariance of two numbers."""

    __slots__ = ("_covariance", "_n", "_variance", "_x", "_y")

    def __init__(self) -> None:
        self._n = 0
        self._x = self._y = self._variance = self._covariance = 0.0

    def add(self, x: float, y: float) -> None:
        self._n += 1
        weight = max(_MEMORY, 1 / self._n)
        dx, dy = x - self._x, y - self._y
        self._x += weight * dx
        self._y += weight * dy
        self._variance = (1 - weight) * (self._variance + weight * dx * dx)
        self._covariance = (1 - weight) * (self._covariance + weight * dx * dy)

    @property
    def elasticity(self) -> float | None:
        if self._n < _ENOUGH or self._variance < _SPREAD**2:
            return None
        return self._covariance / self._variance
