"""What a run was worth. Pure: from what became of each origin to figures.

- Attainment (see `origin`), shares and quantiles are about the origins that arrived in the window, without
  the undecided.
- Goodput counts tokens of attaining origins, each in the second in which it came, and only there: whoever
  arrived before the window and is answered in it counts as well, as who arrived in it and is answered later
  does not. So it can be held against a capacity in tokens a second.
- Wasted tokens are the others that came in the window: to callers that left, too late or too slow for them.
- Jain's index (sum x)^2 / (n * sum x^2) is over the backlogged tenants of a class, where x is tokens
  received in the window by weight. A tenant is backlogged when more than `BACKLOGGED` of its origins were not
  served; who gets all it wants cannot be wronged. With one such tenant among several it is 1.
- An invitation is a refusal with a time to come back; it is kept when the caller came back no earlier and
  was served on that try.
- Recovery is the time from `trouble_ends_s` to the first second from which at least `RECOVERED` of all
  premium and standard origins of every `SLIDING_S` seconds attain.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from mesh.bench.origin import Attempt, Origin
from mesh.bench.workload import PREMIUM, STANDARD, STOCK

BACKLOGGED: Final = 0.05
RECOVERED: Final = 0.95
SLIDING_S: Final = 5
_SOON_S: Final = 0.005  # timers are this exact


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of something; None where there was nothing."""

    p50: float | None
    p90: float | None
    p99: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassScore:
    """Figures of one class, or of all together. Shares are of its origins."""

    origins: int
    attainment: float
    served: float
    shed: float  # refused in good time and form
    failures: float  # gave up, broke off, or any other error
    goodput: float  # tokens a second of attaining origins
    goodput_share: float | None  # of the capacity
    throughput: float  # tokens a second of all
    wasted_tokens: int
    ttft_s: Quantiles  # of the served streams, from when they first asked
    itl_ms: Quantiles  # of the served streams: the mean of each
    latency_s: Quantiles  # of the served, from when they first asked to the last byte
    attempts: float  # for each origin
    invited: int  # refusals with a time to come back
    returned: int  # of these, whoever came back no earlier
    returned_served: float | None  # share of these that was served on that try
    jain: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Second by second from the start of the run. Origins are in the second in which they arrived."""

    origins: dict[str, list[int]]  # by class
    attained: dict[str, list[int]]
    good_tokens: dict[str, list[int]]
    tokens: list[int]  # of all, good or not


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Figures of one run."""

    from_s: float
    to_s: float
    capacity: float | None  # tokens a second
    classes: dict[str, ClassScore]
    total: ClassScore
    goodput_share: float | None
    jain: float | None  # the least of all classes
    recovery_s: float | None  # None: not asked, or never
    reasons: dict[str, int]  # why tries failed: the server's word, or the status
    lag_p99_ms: float  # how late the generator was
    series: Series = field(repr=False)


@dataclass(frozen=True, slots=True)
class Result:
    """One run and its score."""

    scenario: str
    contender: str
    seed: int
    score: Score
    notes: Sequence[str] = field(default_factory=list)  # what a reader must know to judge it
    false_sheds: float | None = None  # refusals for each origin, while an engine had room
    extras: Mapping[str, object] = field(default_factory=dict)  # what else was measured, by name


def score(
    origins: Sequence[Origin],
    *,
    capacity: float | None,
    from_s: float,
    to_s: float,
    weights: Mapping[str, float] | None = None,
    trouble_ends_s: float | None = None,
) -> Score:
    """Figures for the window [from_s, to_s); `weights` are of tenants, 1 where not given."""
    groups: dict[str, list[Origin]] = defaultdict(list)
    for origin in origins:
        groups[origin.ask.traffic.cls].append(origin)
    window = _Window(capacity, from_s, to_s, weights or {})
    classes = {cls: window.of(groups[cls]) for cls in sorted(groups, key=_rank)}
    total = window.of(origins)
    fair = [each.jain for each in classes.values() if each.jain is not None]
    here = _arrived(origins, from_s, to_s)
    late = _quantiles([origin.attempts[0].sent - origin.ask.at for origin in here if origin.attempts])
    return Score(
        from_s=from_s,
        to_s=to_s,
        capacity=capacity,
        classes=classes,
        total=total,
        goodput_share=total.goodput_share,
        jain=min(fair, default=None),
        recovery_s=None if trouble_ends_s is None else recovery_s(origins, trouble_ends_s, to_s),
        reasons=dict(Counter(_failures(here)).most_common()),
        lag_p99_ms=1000 * (late.p99 or 0.0),
        series=series(origins),
    )


class _Window:
    def __init__(
        self, capacity: float | None, from_s: float, to_s: float, weights: Mapping[str, float]
    ) -> None:
        self._capacity = capacity
        self._from_s = from_s
        self._to_s = to_s
        self._weights = weights

    def of(self, origins: Sequence[Origin]) -> ClassScore:
        """Figures of these origins, of one class or of all."""
        here = _arrived(origins, self._from_s, self._to_s)
        served = [origin for origin in here if origin.is_served]
        streamed = [origin for origin in served if origin.ask.traffic.stream]
        good = sum(self._tokens(origin) for origin in origins if origin.attains)
        tokens = sum(map(self._tokens, origins))
        seconds = self._to_s - self._from_s
        invited = [pair for origin in here for pair in _invitations(origin)]
        returned = [is_served for came_back, is_served in invited if came_back]
        return ClassScore(
            origins=len(here),
            attainment=_share(sum(origin.attains for origin in here), here),
            served=_share(len(served), here),
            shed=_share(sum(origin.outcome == "refused" for origin in here), here),
            failures=_share(sum(origin.failed for origin in here), here),
            goodput=good / seconds,
            goodput_share=good / seconds / self._capacity if self._capacity else None,
            throughput=tokens / seconds,
            wasted_tokens=tokens - good,
            ttft_s=_quantiles([origin.ttft_s for origin in streamed]),
            itl_ms=_quantiles([origin.itl_ms for origin in streamed if len(origin.tokens_at) > 1]),
            latency_s=_quantiles([origin.latency_s for origin in served if origin.outcome == "served"]),
            attempts=sum(len(origin.attempts) for origin in here) / max(1, len(here)),
            invited=len(invited),
            returned=len(returned),
            returned_served=sum(returned) / len(returned) if returned else None,
            jain=self._fairness(origins, here),
        )

    def _tokens(self, origin: Origin) -> int:
        """Tokens that came in the window."""
        at = origin.tokens_at
        if not at or at[-1] < self._from_s or at[0] >= self._to_s:
            return 0
        if self._from_s <= at[0] and at[-1] < self._to_s:
            return len(at)
        return sum(self._from_s <= each < self._to_s for each in at)

    def _fairness(self, origins: Iterable[Origin], here: Iterable[Origin]) -> float | None:
        asked: Counter[str] = Counter()
        unserved: Counter[str] = Counter()
        received: Counter[str] = Counter()
        for origin in here:
            asked[origin.ask.traffic.tenant] += 1
            unserved[origin.ask.traffic.tenant] += not origin.is_served
        for origin in origins:
            received[origin.ask.traffic.tenant] += self._tokens(origin)
        backlogged = [tenant for tenant, count in asked.items() if unserved[tenant] > BACKLOGGED * count]
        if len(asked) < 2 or not backlogged:
            return None
        return jain([received[tenant] / self._weights.get(tenant, 1.0) for tenant in backlogged])


def jain(shares: Sequence[float]) -> float:
    """Jain's index: 1 when all are alike, 1/n when one has all. Nothing for all is alike."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0


def recovery_s(origins: Iterable[Origin], from_s: float, to_s: float) -> float | None:
    """Seconds from `from_s` until attainment is back for good; None when it is not before `to_s`."""
    asked: Counter[int] = Counter()
    attained: Counter[int] = Counter()
    for origin in origins:
        if origin.ask.traffic.cls in (PREMIUM, STANDARD) and not origin.is_undecided:
            asked[int(origin.ask.at)] += 1
            attained[int(origin.ask.at)] += origin.attains
    recovered = None
    for second in range(int(to_s) - SLIDING_S, ceil(from_s) - 1, -1):
        slide = range(second, second + SLIDING_S)
        if sum(attained[each] for each in slide) < RECOVERED * sum(asked[each] for each in slide):
            break
        recovered = second
    return None if recovered is None else recovered - from_s


def series(origins: Sequence[Origin]) -> Series:
    """Second by second."""
    last = max((max((origin.ask.at, *origin.tokens_at[-1:])) for origin in origins), default=0.0)
    classes = sorted({origin.ask.traffic.cls for origin in origins}, key=_rank)
    found = Series(
        origins={cls: [0] * (int(last) + 1) for cls in classes},
        attained={cls: [0] * (int(last) + 1) for cls in classes},
        good_tokens={cls: [0] * (int(last) + 1) for cls in classes},
        tokens=[0] * (int(last) + 1),
    )
    for origin in origins:
        cls, good = origin.ask.traffic.cls, origin.attains
        found.origins[cls][int(origin.ask.at)] += 1
        found.attained[cls][int(origin.ask.at)] += good
        for second, count in Counter(map(int, origin.tokens_at)).items():
            found.tokens[second] += count
            if good:
                found.good_tokens[cls][second] += count
    return found


def _invitations(origin: Origin) -> Iterable[tuple[bool, bool]]:
    """For each refusal with a time to come back: whether the caller did so, and was served on that try."""
    tries = origin.attempts
    for attempt, following in zip(tries, [*tries[1:], None], strict=True):
        if _is_invitation(attempt):
            came_back = following is not None and following.sent >= _returns_at(attempt) - _SOON_S
            yield came_back, came_back and following is tries[-1] and origin.is_served


def _is_invitation(attempt: Attempt) -> bool:
    return attempt.status >= 400 and attempt.retry_after_s is not None and attempt.should_retry is not False


def _returns_at(attempt: Attempt) -> float:
    return attempt.ended + (attempt.retry_after_s or 0.0)


def _failures(origins: Iterable[Origin]) -> Iterable[str]:
    for origin in origins:
        for attempt in origin.attempts:
            if attempt.reason or not 200 <= attempt.status < 300:
                yield attempt.reason or str(attempt.status)


def _arrived(origins: Iterable[Origin], from_s: float, to_s: float) -> list[Origin]:
    return [each for each in origins if from_s <= each.ask.at < to_s and not each.is_undecided]


def _share(count: int, of: Sequence[Origin]) -> float:
    return count / len(of) if of else 0.0


def _quantiles(values: list[float]) -> Quantiles:
    """By the nearest rank, so that each is a value that was seen."""
    values.sort()
    picked = (values[ceil(part * len(values)) - 1] if values else None for part in (0.5, 0.9, 0.99))
    return Quantiles(*picked)


def _rank(cls: str) -> tuple[int, str]:
    """Classes in the order of what is promised to them, then by name."""
    known = list(STOCK)
    return known.index(cls) if cls in known else len(known), cls
