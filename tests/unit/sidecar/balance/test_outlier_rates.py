"""Rules 2 and 3 of `outlier`: the sweep, and rates beside those of peers."""

import pytest

from sidecar.balance.outlier import Suspicion, Why
from tests.unit.sidecar.balance.engines import NOT_IN_A_ROW, counts, out, outliers, put, rates


def test_success_rate_of_envoys_example() -> None:
    """Rates 50, 100, 100, 100, 100: mean 90, deviation 20, threshold 90 - 1.9 x 20 = 52."""
    asked: list[Suspicion] = []
    found = outliers(5, decide=lambda suspicion, _now: asked.append(suspicion), **NOT_IN_A_ROW)
    rates(found, [50, 100, 100, 100, 100])
    found.sweep(10.0)
    assert asked == [Suspicion("0", Why.SUCCESS_RATE, 50.0, 52.0, 90.0)]


@pytest.mark.parametrize(
    ("successes", "factor", "ejected"),
    [
        ([51, 100, 100, 100, 100], 1900, ["0"]),
        ([50, 100, 100, 100, 100], 2000, []),  # the threshold is 50 itself: strictly below
        ([50, 100, 100, 100, 100], 1999, ["0"]),
        ([100, 100, 100, 100, 100], 1900, []),
        ([0, 0, 0, 0, 0], 1900, []),
        ([10, 20, 90, 90, 90], 1900, []),
    ],
)
def test_success_rate(successes: list[int], factor: int, ejected: list[str]) -> None:
    found = outliers(5, success_rate_stdev_factor=factor, **NOT_IN_A_ROW)
    rates(found, successes)
    found.sweep(10.0)
    assert out(found) == ejected


@pytest.mark.parametrize(
    ("hosts", "volume", "changes", "ejected"),
    [
        (5, 100, {}, ["0"]),
        (4, 100, {}, []),
        (5, 99, {}, []),
        (4, 100, {"success_rate_minimum_hosts": 4, "success_rate_stdev_factor": 1500}, ["0"]),
        (5, 60, {"success_rate_request_volume": 60}, ["0"]),
    ],
)
def test_success_rate_needs_enough(
    hosts: int, volume: int, changes: dict[str, int], ejected: list[str]
) -> None:
    found = outliers(hosts, **(NOT_IN_A_ROW | changes))
    rates(found, [0] + [volume] * (hosts - 1), volume)
    found.sweep(10.0)
    assert out(found) == ejected


def test_an_interval_is_judged_by_its_own_numbers_alone() -> None:
    found = outliers(5, **NOT_IN_A_ROW)
    rates(found, [0, 50, 50, 50, 50], 50)
    found.sweep(10.0)
    rates(found, [0, 50, 50, 50, 50], 50)
    found.sweep(20.0)
    assert (out(found), found.hosts["0"].volume, found.hosts["0"].rate) == ([], 50, 0.0)
    found.sweep(30.0)
    assert found.hosts["0"].volume == 0


@pytest.mark.parametrize(
    ("failures", "threshold", "ejected"),
    [(85, 85, ["0"]), (84, 85, []), (100, 100, ["0"]), (50, 50, ["0"])],  # from the threshold on
)
def test_failure_percentage(failures: int, threshold: int, ejected: list[str]) -> None:
    found = outliers(
        5,
        failure_percentage_threshold=threshold,
        enforcing_failure_percentage=100,
        enforcing_success_rate=0,
        **NOT_IN_A_ROW,
    )
    rates(found, [100 - failures, 100, 100, 100, 100])
    found.sweep(10.0)
    assert out(found) == ejected


@pytest.mark.parametrize(("hosts", "volume", "ejects"), [(5, 50, True), (4, 50, False), (5, 49, False)])
def test_failure_percentage_needs_enough(hosts: int, volume: int, ejects: bool) -> None:
    found = outliers(hosts, enforcing_failure_percentage=100, **NOT_IN_A_ROW)
    rates(found, [0] + [volume] * (hosts - 1), volume)
    found.sweep(10.0)
    assert bool(out(found)) is ejects


def test_nobody_is_ejected_twice_in_one_sweep() -> None:
    """Where Envoy counts it twice, and so uses two places of its cap."""
    found = outliers(5, enforcing_failure_percentage=100, **NOT_IN_A_ROW)
    rates(found, [0, 100, 100, 100, 100])
    found.sweep(10.0)
    assert counts(found) == {"success_rate": 1}
    assert found.hosts["0"].ejection.times == 1


def test_who_is_out_is_neither_judged_nor_compared_with() -> None:
    found = outliers(6, **NOT_IN_A_ROW)
    assert found.eject(Suspicion("5", Why.FIVE_XX, 5, 5), 0.0)
    rates(found, [50, 100, 100, 100, 100, 0])
    found.sweep(10.0)
    assert out(found) == ["0", "5"]
    assert found.detected[Why.SUCCESS_RATE] == 1


def test_who_comes_back_in_a_sweep_is_judged_in_it() -> None:
    """Envoy's order: ejections end first."""
    found = outliers(5, **NOT_IN_A_ROW)
    assert found.eject(Suspicion("0", Why.FIVE_XX, 5, 5), 0.0)
    rates(found, [0, 100, 100, 100, 100])
    assert found.sweep(30.0) == ["0"]
    assert out(found) == ["0"]
    assert found.hosts["0"].ejection.until == 30.0 + 60.0


def test_what_its_own_sidecar_says_counts_instead_of_what_is_seen_here() -> None:
    found = outliers(5, **NOT_IN_A_ROW)
    for name in "01234":
        put(found, [500] * 100, name)
        found.hosts[name].hear(1000, 500 if name == "2" else 1000)
    found.sweep(10.0)
    assert out(found) == ["2"]
    assert (found.hosts["2"].volume, found.hosts["2"].rate) == (1000, 50.0)
    found.sweep(20.0)
    assert found.hosts["1"].volume == 0, "it counts once"


@pytest.mark.parametrize(("said", "rate"), [((100, 300), 100.0), ((100, -5), 0.0), ((0, 0), 100.0)])
def test_what_makes_no_sense_is_held_within_reason(said: tuple[int, int], rate: float) -> None:
    found = outliers(1)
    found.hosts["0"].hear(*said)
    found.sweep(10.0)
    assert found.hosts["0"].rate == rate


def test_ejection_times_shrink_while_it_behaves() -> None:
    """30 s, 60 s; then one interval less for each that it was in for whole."""
    found = outliers()
    ejection = found.hosts["0"].ejection
    put(found, "500 " * 5)
    found.sweep(30.0)
    put(found, "500 " * 5, now=30.0)
    assert ejection.until == 90.0
    found.sweep(90.0)
    assert ejection.times == 2
    found.sweep(99.0)
    assert ejection.times == 2
    found.sweep(100.0)
    assert ejection.times == 1
    found.sweep(110.0)
    found.sweep(120.0)
    assert ejection.times == 0
    put(found, "500 " * 5, now=120.0)
    assert ejection.until == 150.0
