"""Figures from what became of each origin, each from a handful that can be counted by hand."""

from array import array
from dataclasses import replace
from typing import Any

import pytest

from mesh.bench.origin import Attempt, Origin, Outcome
from mesh.bench.score import ClassScore, jain, recovery_s, score
from mesh.bench.workload import BATCH, PREMIUM, STANDARD, Ask, stock


def origin(
    at: float,
    outcome: Outcome = "served",
    tokens_at: list[float] | None = None,
    *attempts: Attempt,
    cls: str = PREMIUM,
    **traffic: Any,
) -> Origin:
    """Premium, with a first token half a second later unless said otherwise."""
    tokens = ([at + 0.5, at + 0.55] if outcome == "served" else []) if tokens_at is None else tokens_at
    tries = list(attempts) or [Attempt(at, 200 if outcome == "served" else 503)]
    asked = Ask(at, stock(cls, 1, **traffic), 100, 0)
    return Origin(asked, tries, array("d", tokens), tokens[-1] if tokens else at + 0.1, outcome)


def premium(*origins: Origin, capacity: float | None = None, to_s: float = 10) -> ClassScore:
    return score(origins, capacity=capacity, from_s=0, to_s=to_s).classes[PREMIUM]


def test_shares_are_of_those_who_arrived_in_the_window() -> None:
    kinds: list[Outcome] = ["served", "served", "refused", "timeout", "cut", "error", "served", "served"]
    found = premium(*(origin(second, kind) for second, kind in enumerate(kinds)), origin(10.0), origin(-1.0))
    assert found.origins == 8
    assert (found.served, found.shed, found.failures) == (4 / 8, 1 / 8, 3 / 8)
    assert found.attainment == 4 / 8


def test_attainment_is_less_than_service() -> None:
    found = premium(origin(1), origin(2, tokens_at=[9.0, 9.05]))
    assert (found.served, found.attainment) == (1, 0.5)


def test_the_undecided_are_left_out() -> None:
    found = premium(origin(1), origin(9.5, "open"), origin(5, "open", [5.5, 5.55]))
    assert (found.origins, found.served, found.failures) == (2, 1, 0)


def test_goodput_counts_tokens_in_the_second_they_came() -> None:
    before = origin(-1, tokens_at=[-0.5, 0.1])  # 600 ms between its tokens: too slow
    begun = origin(-0.6, tokens_at=[-0.02, 0.01, 0.03])  # two of three
    late = origin(2, tokens_at=[4.0, 4.05])  # none
    ends = origin(9.5, tokens_at=[9.98, 10.0, 10.02])  # the window is open at its end
    found = premium(before, begun, late, ends, origin(3), capacity=2.0)
    assert found.goodput == pytest.approx((2 + 1 + 2) / 10)
    assert found.goodput_share == pytest.approx(0.25)
    assert found.throughput == pytest.approx((1 + 2 + 2 + 1 + 2) / 10)
    assert found.wasted_tokens == 3


def test_quantiles_are_values_that_were_seen() -> None:
    found = premium(*(origin(i / 20, tokens_at=[i / 20 + (i + 1) / 100]) for i in range(100)))
    assert found.ttft_s.p50 == pytest.approx(0.50)
    assert found.ttft_s.p90 == pytest.approx(0.90)
    assert found.ttft_s.p99 == pytest.approx(0.99)
    assert found.itl_ms.p50 is None  # of single tokens


def test_quantiles_are_of_the_served_and_count_from_the_first_try() -> None:
    tries = [Attempt(1.0, 503), Attempt(1.8, 200)]
    found = premium(origin(1, "served", [2.0, 2.04], *tries), origin(3, "timeout"), origin(4, "cut", [4.1]))
    assert (found.ttft_s.p50, found.ttft_s.p99) == (1.0, 1.0)
    assert found.itl_ms.p50 == pytest.approx(40)
    assert found.latency_s.p50 == pytest.approx(1.04)
    assert found.attempts == 4 / 3


def test_an_answer_of_one_piece_has_no_first_token() -> None:
    found = premium(origin(1, stream=False, tokens_at=[1.5, 1.5]))
    assert (found.ttft_s.p50, found.itl_ms.p50, found.latency_s.p50) == (None, None, 0.5)


def refusal(sent: float, **said: Any) -> Attempt:
    return Attempt(sent, 503, "overloaded", ended=sent, **said)


def test_invitations() -> None:
    found = premium(
        origin(1, "served", [2.5], refusal(1, retry_after_s=1.0), Attempt(2.0, 200)),
        origin(2, "refused", [], refusal(2, retry_after_s=1.0), refusal(3.0)),  # came back for nothing
        origin(3, "served", [4.5], refusal(3, retry_after_s=2.0), Attempt(4.0, 200)),  # too early
        origin(4, "refused", [], refusal(4, retry_after_s=2.0)),  # did not come back
        origin(5, "refused", [], refusal(5, retry_after_s=2.0, should_retry=False)),  # not invited
        origin(6, "refused", [], refusal(6)),
    )
    assert (found.invited, found.returned, found.returned_served) == (4, 2, 0.5)
    assert premium(origin(6, "refused", [], refusal(6))).returned_served is None


def test_an_invited_try_counts_for_itself() -> None:
    """Served on a later try than the invited one is a promise that was not kept."""
    tries = [refusal(1, retry_after_s=1.0), refusal(2, retry_after_s=1.0), Attempt(3.0, 200)]
    found = premium(origin(1, "served", [3.5], *tries))
    assert (found.invited, found.returned, found.returned_served) == (2, 2, 0.5)


def test_jain() -> None:
    assert jain([3, 3, 3]) == pytest.approx(1)
    assert jain([9, 0, 0]) == pytest.approx(1 / 3)
    assert jain([0, 0]) == 1


def tenants(**received: tuple[str, int]) -> list[Origin]:
    """Of each tenant one origin that was served that many tokens, and one of this outcome."""
    found = []
    for tenant, (outcome, tokens) in received.items():
        found.append(origin(1, tokens_at=[1.5] * tokens, tenant=tenant))
        found.append(origin(2, outcome, tenant=tenant))  # type: ignore[arg-type]  # a word of Outcome
    return found


def test_fairness_is_between_those_who_did_not_get_all() -> None:
    lucky = tenants(a=("refused", 30), b=("timeout", 10), small=("served", 1))
    assert premium(*lucky).jain == pytest.approx(jain([30, 10]))
    weighted = score(lucky, capacity=None, from_s=0, to_s=10, weights={"a": 3.0}).classes[PREMIUM]
    assert weighted.jain == pytest.approx(1)
    assert premium(*tenants(a=("refused", 30), b=("served", 1))).jain == 1
    assert premium(*tenants(a=("served", 30), b=("served", 1))).jain is None
    assert premium(*tenants(a=("refused", 30))).jain is None


def test_the_least_fair_class_counts() -> None:
    batch = [origin(1, tokens_at=[1.5] * 9, cls=BATCH, tenant="c"), origin(2, "cut", cls=BATCH, tenant="c")]
    batch.append(origin(2, "refused", cls=BATCH, tenant="d"))
    found = score(
        tenants(a=("refused", 5), b=("refused", 5)) + batch, capacity=None, from_s=0, to_s=10
    )
    assert [each.jain for each in found.classes.values()] == [pytest.approx(1), pytest.approx(0.5)]
    assert found.jain == pytest.approx(0.5)


def seconds(attained: str, cls: str = PREMIUM) -> list[Origin]:
    """Ten origins in each second, of which the digit says how many attain; x is all."""
    return [
        origin(second + part / 10, "served" if part < int(many.replace("x", "10")) else "timeout", cls=cls)
        for second, many in enumerate(attained)
        for part in range(10)
    ]


@pytest.mark.parametrize(
    ("attained", "recovered"),
    [
        ("xx00xxxxxxxxxx", 0),  # from second 4 on
        ("xx00000xxxxxxx", 3),
        ("xx00009xxxxxxx", 2),  # 49 of 50 are enough
        ("xx00008xxxxxxx", 2),
        ("xx00007xxxxxxx", 3),  # 47 of 50 are not
        ("xx00xxxx0xxxxx", 5),  # and again
        ("xx00xxxxxxxx0x", None),
        ("xx000000000000", None),
    ],
)
def test_recovery_is_for_good(attained: str, recovered: float | None) -> None:
    assert recovery_s(seconds(attained), 4, 14) == recovered


def test_recovery_is_about_premium_and_standard() -> None:
    poor = seconds("0" * 14, cls=BATCH)
    assert recovery_s(seconds("x" * 14, cls=STANDARD) + poor, 4, 14) == 0
    found = score(seconds("x" * 14) + poor, capacity=None, from_s=0, to_s=14, trouble_ends_s=4)
    assert found.recovery_s == 0
    assert score(poor, capacity=None, from_s=0, to_s=14).recovery_s is None


def test_all_together() -> None:
    named = origin(3, "error")
    named.ask.traffic = replace(named.ask.traffic, cls="other")
    origins = [named, origin(4, cls=BATCH), origin(1), origin(2, "refused", [], refusal(2))]
    found = score(origins, capacity=10, from_s=0, to_s=10)
    assert list(found.classes) == [PREMIUM, BATCH, "other"]
    assert found.total.origins == 4
    assert found.goodput_share == found.total.goodput_share == pytest.approx(0.04)
    assert found.reasons == {"overloaded": 1, "503": 1}


def test_lag_is_that_of_the_first_try() -> None:
    late = origin(1, "served", None, Attempt(1.03, 503), Attempt(3.0, 200))
    found = score([late], capacity=None, from_s=0, to_s=9)
    assert found.lag_p99_ms == pytest.approx(30)


def test_second_by_second() -> None:
    origins = [origin(1.2, tokens_at=[1.9, 1.95, 2.0]), origin(2.5, "cut", [2.7])]
    found = score(origins, capacity=None, from_s=0, to_s=4)
    assert found.series.origins == {PREMIUM: [0, 1, 1]}
    assert found.series.attained == {PREMIUM: [0, 1, 0]}
    assert found.series.good_tokens == {PREMIUM: [0, 2, 1]}
    assert found.series.tokens == [0, 2, 2]


def test_nobody_came() -> None:
    found = score([], capacity=1.0, from_s=0, to_s=10)
    assert found.classes == {}
    assert (found.total.origins, found.total.attainment, found.goodput_share) == (0, 0, 0)
