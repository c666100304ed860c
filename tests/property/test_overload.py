"""What callers of an overloaded pod get, by class and by tenant, in simulated time (see `harness.rehearsal`).

The bounds are those of the algorithm with these constants, not of a machine: a run with the same seed is the
same run everywhere. They leave some room to what the benchmark over sockets has shown, since a rehearsal is
short and a few long answers more or less are a tenth of it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from mesh.bench.score import Score, jain, recovery_s, score
from mesh.bench.workload import BATCH, PREMIUM, STANDARD, Lengths, Traffic, arrivals, mix, stock
from model_pod.fake_scheduler import Costs
from sidecar.flow.ticket import DECODE
from tests.harness.rehearsal import Rehearsal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.bench.origin import Origin

# Of the engine with its default costs and the stock mix, when it is never empty: `model_pod.fake_scheduler`.
REQUESTS_S = 9.2
TOKENS_S = 2360.0
SEEDS = (1, 2)  # judged together


def rehearse(traffic: Sequence[Traffic], seconds: float, **pod: Any) -> list[Origin]:
    return [
        origin
        for seed in SEEDS
        for origin in Rehearsal(arrivals(traffic, seconds, seed), seconds, seed=seed, **pod).run()
    ]


def judge(origins: Sequence[Origin], from_s: float, to_s: float) -> Score:
    return score(origins, capacity=TOKENS_S * len(SEEDS), from_s=from_s, to_s=to_s)


def work(origins: Sequence[Origin], from_s: float, to_s: float) -> Counter[str]:
    """Engine time that each tenant got, in tokens."""
    found: Counter[str] = Counter()
    for origin in origins:
        at = origin.tokens_at
        found[origin.ask.traffic.tenant] += int(DECODE) * sum(from_s <= each < to_s for each in at)
        if at and from_s <= at[0] < to_s:
            found[origin.ask.traffic.tenant] += origin.ask.prompt_tokens
    return found


def test_at_three_times_the_capacity_the_engine_is_used_premium_served_and_nobody_starved() -> None:
    result = judge(rehearse(mix(3 * REQUESTS_S), 32.0), 6.0, 28.0)
    premium = result.classes[PREMIUM]
    left = 1.0 - (premium.goodput_share or 0.0)
    assert (result.goodput_share or 0.0) >= 0.9
    assert premium.attainment >= 0.92
    assert premium.failures == 0.0
    assert (premium.ttft_s.p90 or 9.0) <= 1.0
    assert (result.classes[STANDARD].goodput_share or 0.0) >= 0.6 * left
    assert (result.classes[BATCH].goodput_share or 0.0) >= 0.03


def test_at_ten_times_the_capacity_the_engine_is_premium_s() -> None:
    """Premium alone is twice what the engine can do."""
    result = judge(rehearse(mix(10 * REQUESTS_S), 20.0), 6.0, 16.0)
    assert (result.goodput_share or 0.0) >= 0.85
    assert (result.classes[PREMIUM].goodput_share or 0.0) >= 0.8
    assert result.total.attempts <= 1.1


def test_below_four_fifths_of_the_capacity_nothing_is_refused() -> None:
    origins = rehearse(mix(0.8 * REQUESTS_S), 40.0)
    result = judge(origins, 0.0, 40.0)
    assert result.total.attainment == 1.0
    assert sum(origin.outcome == "refused" for origin in origins) == 0


def test_a_spike_is_over_when_it_is_over() -> None:
    """Ten seconds of five times the capacity, from callers that repeat five times."""

    def profile(at: float) -> float:
        return 5.0 if 5.0 <= at < 15.0 else 0.9

    origins = rehearse(mix(REQUESTS_S, profile=profile, retries=5), 35.0)
    recovered = recovery_s(origins, 15.0, 30.0)
    assert recovered is not None
    assert recovered <= 5.0
    assert judge(origins, 5.0, 30.0).total.attempts <= 1.1


@pytest.mark.parametrize("times", [6, 100])
def test_a_noisy_tenant_gets_no_more_than_others_that_wait(times: int) -> None:
    quiet = 0.3 * REQUESTS_S
    traffic = [stock(STANDARD, times * quiet, tenant="noisy")]
    traffic += [stock(STANDARD, quiet, tenant=f"quiet-{n}") for n in range(4)]
    served = work(rehearse(traffic, 24.0), 5.0, 22.0)
    assert jain(list(served.values())) >= 0.97
    assert served["noisy"] <= 0.3 * served.total()


def test_a_tenant_that_asks_for_less_than_its_part_gets_it_beside_a_noisy_one() -> None:
    traffic = [stock(STANDARD, 10 * REQUESTS_S, tenant="noisy")]
    traffic += [stock(STANDARD, 0.1 * REQUESTS_S, tenant=f"quiet-{n}") for n in range(4)]
    origins = rehearse(traffic, 24.0)
    quiet = [origin for origin in origins if origin.ask.traffic.tenant != "noisy"]
    assert judge(quiet, 6.0, 20.0).total.attainment >= 0.95


def test_tenants_are_served_by_weight() -> None:
    traffic = [stock(STANDARD, REQUESTS_S, tenant=name) for name in ("one", "three")]
    served = work(rehearse(traffic, 30.0, weights={"three": 3.0}), 5.0, 28.0)
    assert 2.3 <= served["three"] / served["one"] <= 3.7


def test_premium_finds_room_in_an_engine_that_batch_has_filled() -> None:
    batch = stock(BATCH, REQUESTS_S, prompt=Lengths(2000, 0.5, 8000))
    premium = stock(PREMIUM, 0.6 * REQUESTS_S, starts_s=15.0)
    result = judge(rehearse([batch, premium], 30.0), 15.0, 27.0)
    assert result.classes[PREMIUM].attainment >= 0.9
    assert (result.classes[PREMIUM].ttft_s.p50 or 9.0) <= 0.6


def test_a_heavy_tail_of_others_does_not_hurt_premium() -> None:
    rare = 0.0075 * REQUESTS_S
    traffic = [
        *mix(1.5 * REQUESTS_S),
        stock(BATCH, rare, tenant="long prompts", prompt=Lengths(24_000, 0.0, 24_000), answer=100),
        stock(BATCH, rare, tenant="long answers", answer=8000),
    ]
    result = judge(rehearse(traffic, 32.0), 6.0, 28.0)
    assert result.classes[PREMIUM].attainment >= 0.88
    assert (result.goodput_share or 0.0) >= 0.8


def test_callers_that_were_invited_back_are_served_on_that_try() -> None:
    origins = rehearse(mix(2 * REQUESTS_S), 40.0, config="admission: {invited: 0.3}")
    result = judge(origins, 6.0, 34.0)
    assert result.total.returned >= 50
    assert (result.total.returned_served or 0.0) >= 0.95


def test_callers_that_obey_nothing_gain_nothing() -> None:
    """They repeat whatever they are told: the engine still does useful work, premium first."""
    result = judge(rehearse(mix(3 * REQUESTS_S, obeys=False, retries=5), 32.0), 6.0, 28.0)
    assert (result.goodput_share or 0.0) >= 0.75
    assert result.classes[PREMIUM].attainment >= 0.88


def test_an_engine_that_is_stuck_keeps_nobody_waiting_for_ever() -> None:
    origins = rehearse(mix(REQUESTS_S), 80.0, costs=Costs(step_ms=1e6))
    first = [origin for origin in origins if origin.ask.at < 20.0]
    assert {origin.outcome for origin in first} == {"refused", "timeout"}
    assert all(origin.latency_s <= origin.ask.traffic.patience_s + 0.001 for origin in first)
