"""What may be tried again, and how long is waited for that.

Budget, in tokens of work over the last ten seconds (Finagle's RetryBudget and Envoy's retry_budget count
requests; here one may cost a thousand times another):

    retries <= ratio x factor x first attempts + factor x RESERVE mean requests

`factor` holds the mesh to its ratio: 1 while the mesh's own g = retries / first attempts is below it,
then ratio / g, and 0 beyond twice the ratio. What must move because its engine is down is not asked for, but
taken: the budget goes into debt, and ordinary retries wait until that is old.

Pause before the n-th retry: evenly from 0 to min(base x 2^(n-1), longest).
"""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW: Final = 10  # seconds
RESERVE: Final = 10  # mean requests in a window: one a second
_KEPT: Final = 256  # first tokens
_FEW: Final = 20
_PATIENCE: Final = 2.0


class RetryBudget:
    """See the file head. Costs in tokens of work, `now` in monotonic seconds."""

    __slots__ = ("_asked", "_count", "_factor", "_retried", "_second", "ratio", "refused")

    def __init__(self, ratio: float) -> None:
        self.ratio = ratio
        self.refused = 0
        self._factor = 1.0
        self._second = 0
        self._asked = [0.0] * _WINDOW
        self._count = [0] * _WINDOW
        self._retried = [0.0] * _WINDOW

    def deposit(self, cost: float, now: float) -> None:
        """A first attempt."""
        at = self._turn(now)
        self._asked[at] += cost
        self._count[at] += 1

    def withdraw(self, cost: float, now: float) -> bool:
        """Whether a retry of this cost may be; then it counts."""
        at = self._turn(now)
        asked, count = sum(self._asked), sum(self._count)
        reserve = RESERVE * (asked / count if count else cost)
        if sum(self._retried) + cost > self._factor * (self.ratio * asked + reserve):
            self.refused += 1
            return False
        self._retried[at] += cost
        return True

    def owe(self, cost: float, now: float) -> None:
        """What moves without asking."""
        self._retried[self._turn(now)] += cost

    def totals(self, now: float) -> tuple[float, float]:
        """Work of first attempts and of retries, in the window."""
        self._turn(now)
        return sum(self._asked), sum(self._retried)

    def hear(self, asked: float, retried: float) -> None:
        """The same of the whole mesh."""
        part = retried / asked if asked else 0.0
        if part <= self.ratio:
            self._factor = 1.0
        else:
            self._factor = self.ratio / part if part <= 2 * self.ratio else 0.0

    def _turn(self, now: float) -> int:
        """Forget what is old; the place of this second."""
        second = int(now)
        for passed in range(max(self._second + 1, second - _WINDOW + 1), second + 1):
            at = passed % _WINDOW
            self._asked[at] = self._retried[at] = 0.0
            self._count[at] = 0
        self._second = max(self._second, second)
        return self._second % _WINDOW


class FirstTokens:
    """How long an engine takes to a first token, by the last of them."""

    __slots__ = ("_seconds",)

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_KEPT)

    def add(self, seconds: float) -> None:
        """One more."""
        self._seconds.append(seconds)

    def quantile(self, part: float) -> float | None:
        """Seconds; None while too few are known."""
        if len(self._seconds) < _FEW:
            return None
        ordered = sorted(self._seconds)
        return ordered[min(int(part * len(ordered)), len(ordered) - 1)]

    def patience_s(self, least: float, longest: float) -> float:
        """After so long another pod is asked: twice the 99th percentile, within bounds."""
        usual = self.quantile(0.99)
        return longest if usual is None else min(max(_PATIENCE * usual, least), longest)


def pause_s(attempt: int, base_s: float, longest_s: float, chance: float) -> float:
    """Before the retry that follows the attempt number `attempt`, from 1; `chance` from 0 to 1."""
    return chance * min(base_s * 2.0 ** (attempt - 1), longest_s)
