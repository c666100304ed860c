"""Which loads there are: rates, windows, tenants."""

from collections import defaultdict

import pytest

from mesh.bench import contenders, scenarios
from mesh.bench.scenarios import Scenario
from mesh.bench.workload import Traffic, arrivals

CAPACITY = 100.0
EVERY = pytest.mark.parametrize("scenario", scenarios.ALL.values(), ids=scenarios.ALL)


def rate(traffic: Traffic, at: float) -> float:
    if not traffic.starts_s <= at < traffic.ends_s:
        return 0.0
    return traffic.rate * (traffic.profile(at) if traffic.profile else 1.0)


def total(name: str, at: float) -> float:
    """Multiples of the capacity."""
    return sum(rate(each, at) for each in scenarios.ALL[name].traffic(CAPACITY)) / CAPACITY


@EVERY
def test_what_is_judged_has_its_competition_to_its_end(scenario: Scenario) -> None:
    from_s, to_s = scenario.window
    assert 0 <= from_s < to_s < scenario.duration_s
    late = [ask for ask in arrivals(scenario.traffic(5.0), scenario.duration_s, 1) if ask.at > to_s]
    assert late


@EVERY
def test_a_tenant_has_one_class_and_one_key(scenario: Scenario) -> None:
    found = defaultdict(set)
    for each in scenario.traffic(CAPACITY):
        found[each.tenant].add((each.cls, each.key))
    assert all(len(kinds) == 1 for kinds in found.values())
    assert all(key for ((_, key),) in found.values())


@EVERY
def test_named_contenders_exist(scenario: Scenario) -> None:
    assert set(scenario.contenders) <= contenders.ALL.keys()


def test_the_default_set_exists() -> None:
    assert set(scenarios.DEFAULT) <= scenarios.ALL.keys()


@pytest.mark.parametrize(
    ("name", "at", "times"),
    [
        ("step-3x", 7.9, 0.7),
        ("step-3x", 8.0, 3.0),
        ("step-10x", 30.0, 10.0),
        ("spike", 4.9, 0.9),
        ("spike", 5.0, 5.0),
        ("spike", 14.9, 5.0),
        ("spike", 15.0, 0.9),
        ("cold-start", 0.0, 3.0),
        ("inversion", 14.0, 1.0),
        ("inversion", 15.0, 1.8),
        ("noisy-6", 0.0, 3.0),
        ("noisy-100", 0.0, 10.4),
        ("heavy-tail", 0.0, 1.515),
        ("pulse", 4.0, 0.7),
        ("pulse", 5.0, 15.0),
        ("pulse", 125.0, 0.7),
        ("low", 20.0, 0.8),
    ],
)
def test_how_much_is_asked_when(name: str, at: float, times: float) -> None:
    assert total(name, at) == pytest.approx(times)


def test_premium_alone_fits_into_three_times_the_capacity() -> None:
    traffic = scenarios.ALL["step-3x"].traffic(CAPACITY)
    assert [rate(each, 20) for each in traffic if each.cls == "premium"] == [pytest.approx(60)]


def test_a_noisy_tenant_is_of_the_class_of_the_others_and_asks_so_much_more() -> None:
    noisy, *others = scenarios.ALL["noisy-6"].traffic(CAPACITY)
    assert {each.cls for each in (noisy, *others)} == {"standard"}
    assert all(noisy.rate == pytest.approx(6 * each.rate) for each in others)
    # Each of the others wants more than its fair share, else nobody could wrong it.
    assert all(each.rate > CAPACITY / 5 for each in others)


def test_after_a_spike_of_any_length_the_same_is_judged() -> None:
    short, long = scenarios.spike(2.5), scenarios.spike(20)
    assert short.window[0] - short.changes_at_s == long.window[0] - long.changes_at_s
    assert short.window[1] - short.window[0] == long.window[1] - long.window[0]
    assert short.changes_at_s == 7.5


def test_callers_of_a_spike_repeat_often() -> None:
    assert {each.retries for each in scenarios.spike().traffic(CAPACITY)} == {5}


def test_callers_of_the_pulse_leave_after_five_seconds() -> None:
    assert {each.patience_s for each in scenarios.ALL["pulse"].traffic(CAPACITY)} == {5}


def test_recovery_is_asked_where_something_changes() -> None:
    steady = {name for name, scenario in scenarios.ALL.items() if scenario.changes_at_s is None}
    assert steady == {"noisy-6", "noisy-100", "heavy-tail", "low"}
