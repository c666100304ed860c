"""What counters say."""

import pytest

from mesh.bench.faults.evidence import Count, arrivals
from tests.unit.mesh.bench.faults.runs import counted, evidence, origin


@pytest.mark.parametrize(
    ("counts", "new"),
    [
        ([(0, 0), (1, 0), (2, 3)], [(2, 3)]),
        ([(0, 5), (1, 6), (2, 6), (3, 8)], [(1, 1), (3, 2)]),
        ([(0, 5), (1, 2)], [(1, 2)]),  # another process, which counts from zero
        ([(0, 5), (1, 0), (2, 1)], [(2, 1)]),
        ([(0, 5), (1, 4), (2, 5), (3, 6)], [(3, 1)]),  # read between its end and its count
        ([(0, 5)], []),
        ([], []),
    ],
)
def test_requests_are_new_in_the_first_sample_that_has_them(
    counts: list[tuple[float, float]], new: list[tuple[float, int]]
) -> None:
    assert list(arrivals([Count(*each) for each in counts])) == new


def test_each_new_request_is_one_arrival_of_its_pod() -> None:
    run = evidence(seen=counted([(9, 0), (10, 1), (11, 3), (30, 4), (31, 5)], [(9, 0)]))
    assert run.arrivals(0, 10, 30) == [11, 11, 30]
    assert run.arrivals(1, 10, 30) == []


def test_who_asked_in_a_time() -> None:
    run = evidence(*(origin(at) for at in (9.9, 10, 29.9, 30)))
    assert [each.ask.at for each in run.asked(10, 30)] == [10, 29.9]


def test_pods_that_nobody_breaks() -> None:
    assert evidence(victims=frozenset({0, 2})).well == [1, 3]
