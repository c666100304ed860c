"""Finds an engine that answers, and is slow, from what each engine's sidecar sees of it in one second.

Two measures, medians over the window, both divided by 1 + running / 64, as a larger batch has longer steps
and who has the most work must not be taken for the slowest:

    start = seconds to a first token / (prompt tokens that stood before it, its own included, + 512)
    gap   = seconds between tokens of a stream, of gaps in which no prompt was being computed

Raw times tell the mix of prompts, not the engine: per token of its own prompt, or over all gaps, healthy
engines under long-tailed load look slow several times in ten minutes. The 512 stand for the step that a
short prompt waits for; while a prompt is computed, steps are longer by its chunk, and `start` is what tells.

With y = ln of a measure, an engine is slow in a window if for either

    y - median(peers) > max(ln slow_ratio, slow_z x max(1.4826 x MAD(peers), 0.15))

and suspected if so in `slow_windows` in a row. 0.15 is the floor of the deviation: two windows of one healthy
engine differ by that much, and peers that happen to be alike would make any difference infinitely many
deviations. Windows with too little in them, or with fewer than three engines, say nothing; after as
many of those the row has ended. If half of all engines are slow, none is: that is no outlier.
"""

from __future__ import annotations

from math import exp, inf, log
from statistics import median
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.balance.outlier import Suspicion, Why

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FEWEST_STARTS: Final = 2
FEWEST_GAPS: Final = 20
_FEWEST_PEERS: Final = 2
_STEP_TOKENS: Final = 512
_BATCH: Final = 64
_LEAST_DEVIATION: Final = 0.15
_MAD_TO_DEVIATION: Final = 1.4826  # of a normal distribution
_MOST_SAMPLES: Final = 256


class Slow(NamedTuple):
    """Named like the keys of the configuration."""

    slow_z: float = 3.5
    slow_ratio: float = 1.5
    slow_windows: int = 3


class Pace(NamedTuple):
    """One second of one engine, as its sidecar tells the others: seconds, and of how many the median."""

    starts: int = 0
    start: float = 0.0
    gaps: int = 0
    gap: float = 0.0


class Pacer:
    """Collects one window of one engine; holds at most 256 of each measure."""

    __slots__ = ("_gaps", "_quiet_since", "_starts")

    def __init__(self) -> None:
        self._starts = _Samples()
        self._gaps = _Samples()
        self._quiet_since = -inf

    def on_awaited(self, first_tokens: int, now: float) -> None:
        """So many first tokens are awaited from the engine from now on."""
        if first_tokens:
            self._quiet_since = inf
        elif self._quiet_since == inf:
            self._quiet_since = now

    def on_start(self, seconds: float, ahead: float) -> None:
        """A first token came `seconds` after its request was sent. `ahead`: prompt tokens that stood before
        it then, its own included."""
        self._starts.add(seconds / (ahead + _STEP_TOKENS))

    def on_gap(self, seconds: float, tokens: int, now: float) -> None:
        """So many further tokens of a stream came, `seconds` after the last one before."""
        if tokens and now - seconds >= self._quiet_since:
            self._gaps.add(seconds / tokens)

    def close(self, running: float) -> Pace:
        """The window is over; on average so many requests ran in it."""
        batch = 1 + running / _BATCH
        starts, start = self._starts.close()
        gaps, gap = self._gaps.close()
        return Pace(starts, start / batch, gaps, gap / batch)


class _Samples:
    """Of many every second, of very many every fourth, and so on."""

    __slots__ = ("_count", "_every", "_kept")

    def __init__(self) -> None:
        self._kept: list[float] = []
        self._count = 0
        self._every = 1

    def add(self, value: float) -> None:
        if self._count % self._every == 0:
            self._kept.append(value)
            if len(self._kept) >= _MOST_SAMPLES:
                del self._kept[1::2]
                self._every *= 2
        self._count += 1

    def close(self) -> tuple[int, float]:
        """How many there were, and their median; begins anew."""
        count, middle = self._count, median(self._kept) if self._kept else 0.0
        self._kept.clear()
        self._count = 0
        self._every = 1
        return count, middle


class Slowness:
    """Judges the windows of one engine, one after the other."""

    __slots__ = ("_name", "_row", "_rules", "_silent")

    def __init__(self, name: str, rules: Slow) -> None:
        self._name = name
        self._rules = rules
        self._row = 0  # slow windows
        self._silent = 0  # since the last window that said something

    def on_window(self, own: Pace, peers: Sequence[Pace]) -> Suspicion | None:
        """`peers`: what other engines that serve did in about the same second."""
        measured = [
            self._judge(Why.SLOW_START, own.start, own.starts >= FEWEST_STARTS, starts(peers)),
            self._judge(Why.SLOW_TOKENS, own.gap, own.gaps >= FEWEST_GAPS, gaps(peers)),
        ]
        said = [suspicion for suspicion in measured if suspicion is not None]
        if not said:
            self._silent += 1
            if self._silent >= self._rules.slow_windows:
                self._row = 0
            return None
        self._silent = 0
        slow = [suspicion for suspicion in said if suspicion.value > suspicion.threshold]
        self._row = self._row + 1 if slow else 0
        if self._row < self._rules.slow_windows:
            return None
        self._row = 0
        return slow[0]

    def forget(self) -> None:
        """What went before says nothing any more: the engine was away."""
        self._row = self._silent = 0

    def _judge(self, why: Why, value: float, is_enough: bool, others: list[float]) -> Suspicion | None:
        """None: it cannot be told."""
        if not is_enough or len(others) < _FEWEST_PEERS:
            return None
        logs = [log(other) for other in others]
        usual = median(logs)
        deviation = _MAD_TO_DEVIATION * median(abs(one - usual) for one in logs)
        margin = max(log(self._rules.slow_ratio), self._rules.slow_z * max(deviation, _LEAST_DEVIATION))
        return Suspicion(self._name, why, value, exp(usual + min(margin, 100.0)), exp(usual))


def starts(peers: Iterable[Pace]) -> list[float]:
    """Of those that have enough of them; what makes no sense is no measure."""
    return [pace.start for pace in peers if pace.starts >= FEWEST_STARTS and 0 < pace.start < inf]


def gaps(peers: Iterable[Pace]) -> list[float]:
    """Likewise."""
    return [pace.gap for pace in peers if pace.gaps >= FEWEST_GAPS and 0 < pace.gap < inf]
