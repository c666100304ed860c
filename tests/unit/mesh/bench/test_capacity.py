"""Measuring capacity: the lengths that are asked, and what is counted."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest

from mesh.bench import capacity
from mesh.bench.capacity import ANSWER, Capacity, mean_of, quantile
from mesh.bench.origin import Origin
from mesh.bench.workload import PROMPT, Ask, Lengths


def test_quantiles_of_a_log_normal_length() -> None:
    assert quantile(PROMPT, 0.5) == 800
    assert quantile(PROMPT, 0.8413447) == round(800 * 2.718281828)  # one sigma above
    assert quantile(PROMPT, 0.999999) == 8000
    assert quantile(Lengths(3, 5.0, 10), 1e-9) == 1


def test_the_mean_of_answers() -> None:
    # exp(0.32) above the median, less what is cut off at 2,000.
    assert mean_of(ANSWER) == pytest.approx(200 * 2.718281828**0.32, rel=0.01)
    assert Capacity(2 * mean_of(ANSWER)).requests_s == pytest.approx(2)


class Driven:
    """Stands in for engines and callers: each ask gets one token every second."""

    def __init__(self) -> None:
        self.asks: list[Ask] = []
        self.bodies: list[dict[str, Any]] = []

    async def drive(
        self,
        asks: Sequence[Ask],
        targets: Sequence[str],
        *,
        model: str,
        extra_body: Callable[[Ask], dict[str, Any]],
        until_s: float,
    ) -> list[Origin]:
        self.asks, self.bodies = list(asks), [extra_body(ask) for ask in asks]
        times = array("d", [n + 0.5 for n in range(round(until_s))])
        return [Origin(ask, tokens_at=times) for ask in asks]


@pytest.fixture
def driven(monkeypatch: pytest.MonkeyPatch) -> Driven:
    @contextlib.asynccontextmanager
    async def started(*_: object, **__: object) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(targets=["http://127.0.0.1:1"], model="fake", check=lambda: None)

    stand_in = Driven()
    monkeypatch.setattr(capacity, "started", started)
    monkeypatch.setattr(capacity, "drive", stand_in.drive)
    return stand_in


def test_tokens_after_the_warming_up_count(driven: Driven) -> None:
    found = asyncio.run(capacity.measure(2, warm_s=3, measured_s=4))
    # One token a second for each, of one of two engines.
    assert found.tokens_s == len(driven.asks) / 2


def test_more_is_asked_than_can_be_answered_and_all_at_the_start(driven: Driven) -> None:
    asyncio.run(capacity.measure(2, warm_s=15, measured_s=20))
    assert len(driven.asks) == 2 * 16 * 35
    assert driven.asks[-1].at < 2
    assert all(ask.traffic.patience_s > 35 for ask in driven.asks)


def test_a_few_hundred_have_the_lengths_of_the_mix(driven: Driven) -> None:
    asyncio.run(capacity.measure(1, warm_s=15, measured_s=20))
    for first in (0, 150, 300):
        some = slice(first, first + 200)
        answers = [body["max_tokens"] for body in driven.bodies[some]]
        prompts = [ask.prompt_tokens for ask in driven.asks[some]]
        assert fmean(answers) == pytest.approx(mean_of(ANSWER), rel=0.03)
        assert fmean(prompts) == pytest.approx(mean_of(PROMPT), rel=0.03)
        # Neither follows from the other.
        pairs = zip(answers, prompts, strict=True)
        together = fmean(a * p for a, p in pairs) - fmean(answers) * fmean(prompts)
        assert abs(together) < 0.15 * stdev(answers) * stdev(prompts)
