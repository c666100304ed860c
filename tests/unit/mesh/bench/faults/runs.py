"""Runs to judge: four pods, one broken at 10 s, nothing asked after 30 s, over at 38 s."""

from array import array
from dataclasses import replace
from typing import Any

from mesh.bench.faults.evidence import Count, Ejected, Evidence, Running, Seen
from mesh.bench.origin import Origin, Outcome
from mesh.bench.workload import Ask, stock

FROM_S, TO_S, OVER_S = 10.0, 30.0, 38.0


def origin(
    at: float,
    outcome: Outcome = "served",
    *,
    first: float | None = None,
    last: float | None = None,
    **more: Any,
) -> Origin:
    """A caller that asked at `at`; its tokens came from `first` to `last`, its end with the last."""
    tokens = array("d", [] if first is None else [first, first if last is None else last])
    ended = more.pop("ended", OVER_S if outcome == "open" else (tokens[-1] if tokens else at + 1))
    return Origin(Ask(at, stock(more.pop("cls", "premium"), 1), 10, 0), [], tokens, ended, outcome)


def evidence(*origins: Origin, **changes: Any) -> Evidence:
    seen = Seen(counts=[[Count(0, 0), Count(OVER_S, 0)] for _ in range(4)], running=[[] for _ in range(4)])
    run = Evidence(
        origins=origins, seen=seen, victims=frozenset({0}),
        from_s=FROM_S, to_s=TO_S, over_s=OVER_S, cap=1, seats=10,
    )  # fmt: skip
    return replace(run, **changes)


def counted(*per_pod: list[tuple[float, float]]) -> Seen:
    """Requests so far, at times, of each pod."""
    counts = [[Count(*each) for each in pod] for pod in per_pod]
    return Seen(counts=counts, running=[[] for _ in per_pod])


def ran(*per_pod: list[tuple[float, float]]) -> Seen:
    """Requests that run, at times, in each pod."""
    return Seen(counts=[[] for _ in per_pod], running=[[Running(*each) for each in pod] for pod in per_pod])


def ejected(*views: tuple[float, set[int]]) -> Seen:
    """Who is ejected, at times, of four pods."""
    found = [Ejected(at, frozenset(pods)) for at, pods in views]
    return Seen(counts=[[] for _ in range(4)], running=[[] for _ in range(4)], ejected=found)
