"""What engines can do at most: output tokens a second, measured straight at them.

So many requests are asked at once that the engines stay full to the end; each tries to hold as many as its KV
cache takes, which is where the fake engine is fastest. The lengths are those of the stock mix, but drawn
evenly (an additive recurrence on the plastic number, M. Roberts 2018), not by chance: answers differ a
hundredfold, and among the few hundred that fit into the time, chance alone would be worth 5 %. The first
seconds are left out: whoever begins together ends together, and until that has worn off, prompts and answers
alternate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from statistics import NormalDist, fmean
from typing import Any, Final

from mesh.bench.clients import drive
from mesh.bench.contenders import Contender, started
from mesh.bench.workload import PROMPT, STANDARD, Ask, Lengths, Traffic, stock

WARM_S: Final = 15.0
MEASURED_S: Final = 20.0
# The fake engine's own, when a request does not say.
ANSWER: Final = Lengths(median=200, sigma=0.8, most=2000)
# One engine ends 9 a second, and 75 run at the end.
_ASKS_PER_SECOND: Final = 16
_BARE: Final = Contender(name="engines", says="nothing before the engines")
_PLASTIC: Final = 1.32471795724474602596


@dataclass(frozen=True, slots=True)
class Capacity:
    """Of one engine."""

    tokens_s: float

    @property
    def requests_s(self) -> float:
        """Of the stock mix."""
        return self.tokens_s / mean_of(ANSWER)


async def measure(
    pods: int, engine: Sequence[str] = (), *, warm_s: float = WARM_S, measured_s: float = MEASURED_S
) -> Capacity:
    """The capacity of one engine, while `pods` of them run."""
    until_s = warm_s + measured_s
    count = round(pods * _ASKS_PER_SECOND * until_s)
    patient = stock(STANDARD, 0.0, patience_s=2 * until_s, retries=0)
    asks = [_ask(number, patient) for number in range(count)]
    async with started(_BARE, pods=pods, traffic=[patient], engine=engine) as running:
        origins = await drive(
            asks, running.targets, model=running.model, extra_body=_fixed_length, until_s=until_s
        )
        running.check()
    tokens = sum(sum(warm_s <= at < until_s for at in origin.tokens_at) for origin in origins)
    return Capacity(tokens / measured_s / pods)


def _ask(number: int, traffic: Traffic) -> Ask:
    # One millisecond apart: a caller that connects costs more than that, and nobody should fail at it.
    return Ask(number / 1000, traffic, quantile(PROMPT, _even(number, 1)), number)


def _fixed_length(ask: Ask) -> dict[str, Any]:
    return {"max_tokens": quantile(ANSWER, _even(ask.number, 2))}


def _even(number: int, dimension: int) -> float:
    """In (0, 1)."""
    return (number + 1) * _PLASTIC**-dimension % 1 or 0.5


def quantile(lengths: Lengths, part: float) -> int:
    """The length that `part` of all do not exceed."""
    normal = NormalDist().inv_cdf(part)
    return max(1, min(lengths.most, round(lengths.median * exp(lengths.sigma * normal))))


def mean_of(lengths: Lengths, steps: int = 2000) -> float:
    """The mean length."""
    return fmean(quantile(lengths, (step + 0.5) / steps) for step in range(steps))
