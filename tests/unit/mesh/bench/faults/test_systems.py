"""Who is compared, and how many pods each may eject."""

import pytest

from mesh.bench.faults import systems


@pytest.mark.parametrize(
    ("name", "pods", "cap"),
    [("headgate", 8, 1), ("headgate", 10, 2), ("headgate", 3, 1), ("headgate", 2, 0), ("envoy", 8, 4)],
)
def test_caps(name: str, pods: int, cap: int) -> None:
    assert systems.cap(systems.ALL[name], pods) == cap


def test_the_default_is_us_and_what_there_is_without_us() -> None:
    assert [systems.has_sidecars(systems.ALL[name]) for name in systems.DEFAULT] == [True, False]
