"""Who asks for what, and when. Pure, and the same for the same seed, whatever is asked.

Arrivals are open loop: nobody waits for an answer before asking, as crowds do not. Each `Traffic` is a
Poisson process whose rate may change with time (constant over `_STEP_S`): between two arrivals, the integral
of the rate is exponential with mean 1. Every traffic has a generator of its own: a change of one leaves the
others as they were.

The stock mix is 20/50/30 % premium/standard/batch with the sidecar's own default objectives; what its callers
ask is log-normal.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf
from random import Random
from typing import Any, Final

_STEP_S: Final = 0.05

PREMIUM: Final = "premium"
STANDARD: Final = "standard"
BATCH: Final = "batch"


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal lengths in tokens, at most `most`; with `sigma` 0 all are the median."""

    median: float
    sigma: float
    most: int

    def draw(self, random: Random) -> int:
        return max(1, min(self.most, round(self.median * exp(random.gauss(0.0, self.sigma)))))


@dataclass(frozen=True, slots=True)
class Stock:
    """What callers of one class want unless a scenario says otherwise."""

    share: float  # of all arrivals
    ttft_s: float
    itl_ms: float
    patience_s: float


STOCK: Final = {
    PREMIUM: Stock(0.2, ttft_s=1.0, itl_ms=60.0, patience_s=5.0),
    STANDARD: Stock(0.5, ttft_s=3.0, itl_ms=60.0, patience_s=10.0),
    BATCH: Stock(0.3, ttft_s=30.0, itl_ms=60.0, patience_s=60.0),
}
PROMPT: Final = Lengths(median=800, sigma=1.0, most=8000)
RETRIES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Callers that are alike."""

    cls: str
    rate: float  # new requests a second; repeats come on top
    tenant: str
    key: str = ""  # bearer token; none is sent when empty
    ttft_s: float  # the objective, from when the caller first asked
    itl_ms: float  # the objective for the mean time between tokens
    patience_s: float  # how long a caller waits for its first token, over all its tries; then it leaves
    timeout_s: float | None = None  # how long one try may be silent; None: `patience_s`
    retries: int = RETRIES  # most repeats
    obeys: bool = True  # x-should-retry and retry-after are read; else only the status is
    prompt: Lengths = PROMPT
    answer: int | None = None  # `max_tokens` of the request; None: the engine decides
    stream: bool = True
    starts_s: float = 0.0
    ends_s: float = inf
    profile: Callable[[float], float] | None = None  # multiplies the rate at so many seconds after the start


@dataclass(slots=True)
class Ask:
    """One caller's wish."""

    at: float  # seconds after the start
    traffic: Traffic
    prompt_tokens: int
    number: int  # its place among all


def stock(cls: str, rate: float, **changes: Any) -> Traffic:
    """Callers of this class as the stock mix has them, but for `changes`."""
    usual = STOCK[cls]
    fields: dict[str, Any] = {
        "tenant": cls,
        "ttft_s": usual.ttft_s,
        "itl_ms": usual.itl_ms,
        "patience_s": usual.patience_s,
    }
    return Traffic(cls=cls, rate=rate, **(fields | changes))


def mix(rate: float, **changes: Any) -> list[Traffic]:
    """The stock mix at `rate` requests a second in all."""
    return [stock(cls, rate * usual.share, **changes) for cls, usual in STOCK.items()]


def arrivals(traffic: Sequence[Traffic], duration_s: float, seed: int) -> list[Ask]:
    """All that is asked within `duration_s`, in order."""
    asks = []
    for place, each in enumerate(traffic):
        random = Random(f"{seed}/{place}/{each.cls}/{each.tenant}")
        asks += [Ask(at, each, each.prompt.draw(random), 0) for at in _times(each, duration_s, random)]
    asks.sort(key=lambda ask: ask.at)
    for number, ask in enumerate(asks):
        ask.number = number
    return asks


def _times(traffic: Traffic, duration_s: float, random: Random) -> Iterator[float]:
    end = min(duration_s, traffic.ends_s)
    at = traffic.starts_s
    left = random.expovariate(1.0)  # of the integral of the rate, until the next arrival
    while at < end:
        until = end
        rate = traffic.rate
        if traffic.profile is not None:
            until = min(end, at + _STEP_S)
            rate *= traffic.profile(at)
        due = rate * (until - at)
        if due <= left:
            left -= due
            at = until
        else:
            at += left / rate
            yield at
            left = random.expovariate(1.0)
