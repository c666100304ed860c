"""Who attains its objective, and what is not known of whoever was still there at the end."""

from array import array
from typing import Any

import pytest

from mesh.bench.origin import Origin, Outcome
from mesh.bench.workload import PREMIUM, Ask, stock


def origin(outcome: Outcome, tokens_at: list[float], ended: float = 0.0, **traffic: Any) -> Origin:
    """Asked at 10 s for a first token within 1 s and 60 ms between."""
    asked = Ask(10.0, stock(PREMIUM, 1, ttft_s=1.0, itl_ms=60.0, **traffic), 100, 0)
    return Origin(asked, [], array("d", tokens_at), ended, outcome)


def test_times_count_from_the_first_try() -> None:
    served = origin("served", [10.5, 10.55, 10.6], ended=10.7)
    assert served.ttft_s == pytest.approx(0.5)
    assert served.itl_ms == pytest.approx(50)
    assert served.latency_s == pytest.approx(0.7)
    assert origin("served", [10.5], ended=10.5).itl_ms == 0


@pytest.mark.parametrize(
    ("tokens_at", "attains"),
    [
        ([10.9, 10.95, 11.0], True),
        ([11.1, 11.15, 11.2], False),  # began late
        ([10.9, 11.0, 11.1], False),  # too slow
        ([10.9, 10.92, 11.01], True),  # one gap may be long while the mean is not
        ([10.9], True),
        ([], False),
    ],
)
def test_a_stream_attains_by_its_first_token_and_its_pace(tokens_at: list[float], attains: bool) -> None:
    assert origin("served", tokens_at, ended=11.3).attains is attains


@pytest.mark.parametrize("outcome", ["refused", "timeout", "cut", "error"])
def test_nothing_but_a_whole_answer_attains(outcome: Outcome) -> None:
    assert not origin(outcome, [10.1, 10.15], ended=11.0).attains
    assert not origin(outcome, [10.1, 10.15], ended=11.0).is_served


def test_an_answer_that_is_not_streamed_has_time_for_all_its_tokens() -> None:
    whole = [11.5] * 11  # 1 s, and 10 times 60 ms
    assert origin("served", whole, ended=11.59, stream=False).attains
    assert not origin("served", whole, ended=11.61, stream=False).attains


def test_who_was_there_at_the_end_counts_by_what_it_had() -> None:
    assert origin("open", [10.5, 10.55], ended=12.0).attains
    assert not origin("open", [11.5, 11.55], ended=12.0).attains
    assert origin("open", [11.5], ended=12.0).is_served
    assert not origin("open", [], ended=12.0).is_served


def test_who_still_had_time_says_nothing() -> None:
    assert origin("open", [], ended=10.9).is_undecided
    assert not origin("open", [], ended=11.1).is_undecided
    assert origin("open", [], ended=11.1, stream=False).is_undecided
    assert not origin("open", [10.5], ended=10.9).is_undecided
    assert not origin("refused", [], ended=10.9).is_undecided
