"""What a run is worth: fates of callers, and when pods are out, ejected, or in use."""

from math import inf
from typing import Any

import pytest

from mesh.bench.faults import judge
from mesh.bench.faults.judge import Fate
from mesh.bench.origin import Origin
from tests.unit.mesh.bench.faults.runs import counted, ejected, evidence, origin, ran

LASTS = [(float(at), float(at)) for at in range(39)]  # a request a second
SILENT = [(0.0, 0.0), (38.0, 0.0)]


@pytest.mark.parametrize(
    ("caller", "fate"),
    [
        (origin(8, first=9, last=12), "served"),
        (origin(29, "open", first=30, last=37), "served"),
        (origin(29, "open", first=30, last=34), "failed"),  # silent at the end
        (origin(12, "refused"), "refused"),
        (origin(8, "cut", first=9, last=11), "broken"),
        (origin(8, "timeout", first=9, last=9.9, ended=25.0), "broken"),
        (origin(8, "open", first=9, last=9.9), "broken"),
        (origin(9, "cut", first=10.5, last=11), "failed"),  # began after the fault
        (origin(9, "error", ended=10.0), "failed"),
        (origin(12, "open"), "failed"),  # still nothing at the end
    ],
)
def test_fates(caller: Origin, fate: Fate) -> None:
    assert judge.fate(caller, evidence()) == fate


MIXED = [
    origin(1, "error"),  # before anything broke
    origin(8, first=9, last=12),
    origin(8, "cut", first=9, last=11),
    origin(9.5, "error"),
    origin(10.2, "error"),
    origin(12, "refused"),
    origin(13, first=14, last=15),
    origin(14, "error", ended=15.0),
]


def test_what_is_counted_begins_with_the_fault() -> None:
    run = evidence(*MIXED)
    assert (judge.failed(run), judge.refused(run), judge.broken(run), judge.lost(run)) == (3, 1, 1, 4)
    assert judge.lost_later(run, 0) == 3
    assert judge.lost_later(run, 1) == 2
    assert judge.success(run) == 0.25  # of those who asked after it
    assert judge.streams(run) == 3


def test_nobody_asked_nothing_failed() -> None:
    assert judge.success(evidence()) == 1


@pytest.mark.parametrize(("running", "elsewhere"), [(0, 2), (1, 1), (2, 0), (5, 0)])
def test_whom_else_a_dead_pod_took_with_it(running: int, elsewhere: int) -> None:
    seen = ran([(9.0, 7.0), (9.8, float(running)), (11.0, 9.0)], [], [], [])
    assert judge.lost_elsewhere(evidence(*MIXED, seen=seen)) == elsewhere


@pytest.mark.parametrize(
    ("counts", "out"),
    [
        (SILENT, 0),
        ([(9.9, 3), (10.3, 4), (10.6, 5), (38, 5)], 0.6),
        ([(9.9, 3), (10.3, 4), (14, 5), (38, 5)], 4),  # 3.7 s without one say nothing
        ([(9.9, 3), (10.3, 4), (15, 5), (38, 5)], 0.3),
        (LASTS, inf),
        ([(9.9, 0), (13, 1), (16, 2), (19, 3), (22, 4), (25, 5), (28, 6), (35, 6)], inf),
    ],
)
def test_when_a_pod_is_out(counts: list[tuple[float, float]], out: float) -> None:
    run = evidence(seen=counted(counts, LASTS, LASTS, LASTS))
    assert judge.out_after_s(run) == pytest.approx(out)


def test_the_last_of_several_counts() -> None:
    seen = counted(SILENT, [(9, 0), (12, 1), (38, 1)], LASTS, LASTS)
    assert judge.out_after_s(evidence(seen=seen, victims=frozenset({0, 1}))) == 2


def test_of_a_pod_that_nobody_counted_nothing_is_said() -> None:
    run = evidence(seen=counted([], LASTS, LASTS, LASTS))
    assert judge.out_after_s(run) is None
    assert judge.swings(run) is None
    assert judge.attempts(run) is None


VIEWS = [(9.0, set[int]()), (12.0, {0}), (13.0, {0, 2}), (14.0, {2}), (15.0, {0})]


def test_ejections() -> None:
    run = evidence(seen=ejected(*VIEWS))
    assert judge.ejected_after_s(run) == 2
    assert judge.most_ejected(run) == 2
    assert judge.most_ejections(run) == 2
    assert judge.falsely_ejected(run) == 1


def test_an_ejection_before_the_fault_is_none_for_it() -> None:
    assert judge.ejected_after_s(evidence(seen=ejected((9.0, {0}), (9.5, set()), (12.0, {1})))) == inf


def test_every_victim_must_be_ejected() -> None:
    run = evidence(seen=ejected((12.0, {0})), victims=frozenset({0, 1}))
    assert judge.ejected_after_s(run) == inf


def test_nothing_seen_is_nobody_ejected() -> None:
    run = evidence()
    assert (judge.most_ejected(run), judge.most_ejections(run), judge.falsely_ejected(run)) == (0, 0, 0)


def test_use_of_those_who_are_left_at_the_end() -> None:
    seen = ran([(25.0, 0.0)], [(19.0, 0.0), (21.0, 10.0), (29.0, 8.0), (31.0, 0.0)], [(25.0, 9.0)], [])
    assert judge.busy(evidence(seen=seen)) == pytest.approx(0.9)
    assert judge.busy(evidence()) is None


def flapping(*slices: int) -> list[tuple[float, float]]:
    """As many requests in each 2.5 s after the fault."""
    counts, total = [(9.9, 0.0)], 0
    for number, new in enumerate(slices):
        total += new
        counts.append((10 + 2.5 * number + 1, float(total)))
    return [*counts, (38.0, float(total))]


@pytest.mark.parametrize(
    ("slices", "swings"),
    [
        ((5, 5, 5, 5, 5, 5, 5, 5), 0),
        ((5, 0, 0, 0, 0, 0, 0, 0), 0),
        ((5, 0, 0, 0, 5, 5, 5, 5), 1),
        ((0, 5, 0, 5, 0, 5, 0, 5), 4),
        ((5, 0, 1, 1, 1, 1, 1, 1), 0),  # a probe is no load
        ((5, 0, 1, 2, 3, 4, 5, 5), 1),  # a gentle return is one
        ((5, 2, 2, 5, 2, 2, 5, 5), 0),
    ],
)
def test_swings(slices: tuple[int, ...], swings: int) -> None:
    asks = [origin(10 + number / 8) for number in range(160)]  # 5 for each pod in each slice
    seen = counted(flapping(*slices), LASTS, LASTS, LASTS)
    assert judge.swings(evidence(*asks, seen=seen)) == swings


def test_attempts_of_each_caller() -> None:
    asks = [origin(at) for at in (5.0, 12.0, 13.0, 14.0, 15.0)]
    seen = counted([(9, 7), (12, 8), (36, 9)], [(9, 0), (13, 3)], SILENT, SILENT)
    assert judge.attempts(evidence(*asks, seen=seen)) == 5 / 4


def asking(ttft_s: float, **more: Any) -> list[Origin]:
    return [origin(at, first=at + ttft_s, **more) for at in (15.0, 16.0, 17.0)]


def test_premium_is_compared_with_the_healthy_system() -> None:
    healthy = evidence(*asking(0.1))
    # Neither the first seconds nor other classes count.
    others = [*asking(9.0, cls="batch"), origin(12.0, first=20.0), origin(20.0, "error")]
    run = evidence(*asking(0.13), *others, healthy=healthy)
    assert judge.ttft_ratio(run) == pytest.approx(1.3)


def test_without_a_healthy_system_nothing_is_compared() -> None:
    assert judge.ttft_ratio(evidence(*asking(0.1))) is None
    assert judge.ttft_ratio(evidence(*asking(0.1), healthy=evidence())) is None
