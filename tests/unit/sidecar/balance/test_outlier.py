"""Envoy's rules in a row, who decides, members and health; rates are in `test_outlier_rates`."""

import pytest

from sidecar.balance.ejection import State, Terms
from sidecar.balance.outcome import NOTHING, Outcome
from sidecar.balance.outlier import Outliers, Rules, Suspicion, Why
from tests.unit.sidecar.balance.engines import ENVOY, NOT_IN_A_ROW, counts, out, outliers, put, rates

LOCAL = Outcome(503, local=True)

# 1. In a row.


@pytest.mark.parametrize(
    ("statuses", "detected"),
    [
        ("500 " * 4, {}),
        ("500 " * 5, {"consecutive_5xx": 1}),
        ("500 500 500 500 200 500", {}),
        ("500 500 500 500 404 500", {}),  # Envoy's: below 500 is success; `classify` keeps 4xx away
        ("500 " * 4 + "200 " + "500 " * 5, {"consecutive_5xx": 1}),
        ("502 502 503 504 500", {"consecutive_5xx": 1}),  # a 500 is no gateway failure: that row is over
        ("500 502 503 504 502", {"consecutive_5xx": 1}),
        ("599 " * 5, {"consecutive_5xx": 1}),
    ],
)
def test_failures_in_a_row(statuses: str, detected: dict[str, int]) -> None:
    found = outliers(enforcing_consecutive_gateway_failure=100)
    put(found, statuses)
    assert counts(found) == detected
    assert out(found) == (["0"] if detected else [])


def test_gateway_fires_before_5xx_and_then_it_is_out() -> None:
    found = outliers(enforcing_consecutive_gateway_failure=100)
    put(found, "503 " * 5)
    assert counts(found) == {"consecutive_gateway_failure": 1}
    assert found.hosts["0"].runs == {Why.GATEWAY: 0, Why.FIVE_XX: 5}, "counted, not fired, not reset"
    assert found.ejected[Why.GATEWAY] == 1


def test_both_fire_if_the_first_is_not_enforced() -> None:
    found = outliers()
    put(found, "503 " * 5)
    assert counts(found) == {"consecutive_gateway_failure": 1, "consecutive_5xx": 1}
    assert found.ejected[Why.GATEWAY] == 0
    assert found.ejected[Why.FIVE_XX] == 1


def test_failures_of_local_origin_count_by_themselves_too() -> None:
    found = outliers(consecutive_local_origin_failure=3, chance=0.99)
    for outcome in (LOCAL, LOCAL, Outcome(503), LOCAL, LOCAL):
        found.put("0", outcome, 0.0)
    assert counts(found) == {"consecutive_gateway_failure": 1, "consecutive_5xx": 1}
    assert out(found) == ["0"]
    found = outliers(consecutive_local_origin_failure=3)
    for _ in range(3):
        found.put("0", LOCAL, 0.0)
    assert counts(found) == {"consecutive_local_origin_failure": 1}
    assert out(found) == ["0"]


def test_it_fires_again_after_as_many_when_the_cap_is_reached() -> None:
    found = outliers(2, local_max_ejection_percent=0)
    put(found, "500 " * 14)
    assert counts(found) == {"consecutive_5xx": 2}
    assert found.overflow == 2
    put(found, "500")
    assert found.overflow == 3


def test_it_fires_again_after_as_many_when_not_enforced() -> None:
    found = outliers(enforcing_consecutive_5xx=0)
    put(found, "500 " * 15)
    assert counts(found) == {"consecutive_5xx": 3}
    assert (out(found), found.overflow) == ([], 0)


def test_counters_go_on_while_it_is_out_and_never_fire_past_their_limit() -> None:
    found = outliers(consecutive_gateway_failure=7, enforcing_consecutive_gateway_failure=100)
    put(found, "503 " * 6)
    assert found.hosts["0"].runs[Why.GATEWAY] == 6
    put(found, "503 " * 6)
    assert counts(found) == {"consecutive_5xx": 1}
    assert found.hosts["0"].runs[Why.GATEWAY] == 12
    found.sweep(30.0)
    assert found.hosts["0"].runs == {}, "2: cleared when it is back"
    put(found, "503 " * 4, now=31.0)
    assert counts(found) == {"consecutive_5xx": 1}


def test_nothing_counts_that_says_nothing_or_is_about_nobody() -> None:
    found = outliers()
    put(found, "500 " * 4)
    found.put("0", NOTHING, 0.0)
    put(found, "500")
    put(found, "500 " * 5, "nobody")
    assert counts(found) == {"consecutive_5xx": 1}
    assert not found.eject(Suspicion("nobody", Why.FIVE_XX, 5, 5), 0.0)
    assert found.on_tried("nobody", 1, False, 0.0)
    assert not found.set_health("nobody", False, 0.0)


# Enforcing, the cap, jitter.


@pytest.mark.parametrize(
    ("chance", "enforcing", "ejects"),
    [
        (0.0, 0, False),
        (0.0, 1, True),
        (0.01, 1, False),
        (0.299, 30, True),
        (0.30, 30, False),
        (0.999, 100, True),
        (0.999, 99, False),
    ],
)
def test_enforcing(chance: float, enforcing: int, ejects: bool) -> None:
    """Envoy: not enforced if a whole number below 100 is not below the percentage."""
    found = outliers(chance=chance, enforcing_consecutive_5xx=enforcing)
    put(found, "500 " * 5)
    assert bool(out(found)) is ejects
    assert found.detected[Why.FIVE_XX] == 1
    assert found.ejected[Why.FIVE_XX] == ejects


@pytest.mark.parametrize(
    ("chance", "jitter", "adds"),
    [(0.0, 5.0, 0.0), (0.5, 5.0, 2.5), (0.99999, 5.0, 5.0), (0.9, 0.0, 0.0), (0.3333, 1.0, 0.333)],
)
def test_jitter_is_whole_milliseconds_up_to_its_most(chance: float, jitter: float, adds: float) -> None:
    found = outliers(chance=chance, max_ejection_time_jitter_s=jitter)
    put(found, "500 " * 5)
    assert found.hosts["0"].ejection.until == 30.0 + adds


@pytest.mark.parametrize(
    ("hosts", "percent", "ejected"),
    [(2, 10, 0), (3, 10, 1), (9, 10, 1), (20, 10, 2), (10, 20, 2), (10, 100, 10)],
)
def test_the_cap(hosts: int, percent: int, ejected: int) -> None:
    found = outliers(hosts, local_max_ejection_percent=percent)
    for name in found.hosts:
        put(found, "500 " * 5, name)
    assert found.out == len(out(found)) == ejected
    assert found.overflow == hosts - ejected


def test_the_cap_is_asked_before_enforcing() -> None:
    """As in Envoy: a detector that is only watched shows in the same counter."""
    found = outliers(2, local_max_ejection_percent=0, enforcing_consecutive_5xx=0)
    put(found, "500 " * 5)
    assert found.overflow == 1


def test_a_place_is_free_again_when_its_engine_is_back() -> None:
    found = outliers(10, local_max_ejection_percent=10)
    put(found, "500 " * 5, "0")
    assert found.sweep(20.0) == []
    put(found, "500 " * 5, "1", 20.0)
    assert out(found) == ["0"]
    assert found.sweep(30.0) == ["0"]
    put(found, "500 " * 5, "1", 30.0)
    assert out(found) == ["1"]


def test_probation_holds_its_place_and_a_failure_on_it_needs_no_other() -> None:
    found = outliers(10, local_max_ejection_percent=10, terms=Terms())
    put(found, "500 " * 5)
    assert found.sweep(30.0) == ["0"]
    ejection = found.hosts["0"].ejection
    assert ejection.state is State.PROBATION
    put(found, "500 " * 5, "1", 30.0)
    assert out(found) == ["0"]
    put(found, "500 " * 5, "0", 30.0)
    assert found.detected[Why.FIVE_XX] == 2, "what it does on probation is judged by `on_tried`"
    assert not found.on_tried("0", ejection.try_one(), False, 31.0)
    assert (ejection.state, ejection.until) == (State.OUT, 91.0)
    assert found.sweep(91.0) == ["0"]
    put(found, "500", "0", 91.0)
    for _ in range(3):
        assert found.on_tried("0", ejection.try_one(), True, 92.0)
    assert out(found) == []
    assert found.hosts["0"].runs == {}
    assert found.sweep(200.0) == []


def test_probation_that_ends_by_itself_is_not_told_as_an_ejection_that_ends() -> None:
    found = outliers(terms=Terms())
    put(found, "500 " * 5)
    found.sweep(30.0)
    put(found, "500 " * 7)
    assert found.sweep(60.0) == []
    assert out(found) == []
    assert found.hosts["0"].runs == {}


# Deciding later.


def test_a_suspicion_waits_for_its_ticket() -> None:
    asked: list[tuple[Suspicion, float]] = []
    found = outliers(decide=lambda *ask: asked.append(ask))
    put(found, "500 " * 9, now=7.0)
    suspicion = Suspicion("0", Why.FIVE_XX, 5, 5)
    assert asked == [(suspicion, 7.0)], "asked once"
    put(found, "500")
    assert len(asked) == 2
    assert out(found) == []
    assert found.eject(suspicion, 8.0)
    assert not found.eject(suspicion, 9.0), "its ticket came twice"
    assert found.hosts["0"].ejection.until == 38.0
    assert found.ejected[Why.FIVE_XX] == 1


def test_an_unenforced_one_says_so() -> None:
    asked: list[Suspicion] = []
    found = outliers(decide=lambda suspicion, _now: asked.append(suspicion), chance=0.5)
    put(found, "503 " * 5)
    assert [(ask.why, ask.enforced) for ask in asked] == [(Why.GATEWAY, False), (Why.FIVE_XX, True)]


def test_suspicions_from_elsewhere_take_the_same_way() -> None:
    found = outliers(chance=0.999)
    found.suspect(Suspicion("3", Why.SLOW_TOKENS, 0.09, 0.05, 0.03), 1.0)
    found.suspect(Suspicion("3", Why.SLOW_TOKENS, 0.09, 0.05, 0.03), 2.0)
    assert out(found) == ["3"]
    assert counts(found) == {"slow_tokens": 1}


# Members and health.


def test_who_is_down_is_no_suspect_and_no_peer() -> None:
    found = outliers(6, **(NOT_IN_A_ROW | {"consecutive_5xx": 5}))
    found.set_health("5", False, 0.0)
    put(found, "500 " * 5, "5")
    found.suspect(Suspicion("5", Why.SLOW_TOKENS, 9, 1), 0.0)
    assert not found.eject(Suspicion("5", Why.FIVE_XX, 5, 5), 0.0)
    assert counts(found) == {}
    rates(found, [100, 100, 100, 100, 50, 0])
    assert out(found) == ["4"], "50 failures in a row"
    found = outliers(5, **NOT_IN_A_ROW)
    found.set_health("4", False, 0.0)
    rates(found, [50, 100, 100, 100, 100])
    found.sweep(10.0)
    assert out(found) == [], "four are too few to compare"


def test_going_down_ends_an_ejection_and_frees_its_place() -> None:
    found = outliers(10, local_max_ejection_percent=10)
    put(found, "500 " * 5)
    assert found.set_health("0", False, 5.0)
    assert not found.set_health("0", False, 6.0)
    assert found.out == 0
    put(found, "500 " * 5, "1", 7.0)
    assert out(found) == ["1"]
    assert not found.set_health("0", True, 100.0)
    assert out(found) == ["1"]
    ejection = found.hosts["0"].ejection
    assert (ejection.times, ejection.share(103.0), ejection.share(115.0)) == (1, 0.1, 0.5)


def test_failures_of_when_it_was_down_do_not_count_when_it_is_well() -> None:
    """Else its counter, past its limit, could never equal it."""
    found = outliers()
    found.set_health("0", False, 0.0)
    put(found, "500 " * 8)
    found.set_health("0", True, 1.0)
    put(found, "500 " * 4)
    assert out(found) == []
    put(found, "500")
    assert out(found) == ["0"]


def test_health_that_does_not_change_ends_no_ejection() -> None:
    """Unlike Envoy's default: engines answer their checks while they fail."""
    found = outliers()
    put(found, "500 " * 5)
    assert not found.set_health("0", True, 5.0)
    assert out(found) == ["0"]


def test_members_come_and_go() -> None:
    found = outliers(10, local_max_ejection_percent=10)
    put(found, "500 " * 5)
    found.set_members([str(number) for number in range(1, 10)])
    assert found.out == 0
    found.set_members([str(number) for number in range(10)])
    assert found.hosts["0"].ejection.times == 0, "whoever comes again is new"


@pytest.mark.parametrize(("left", "still"), [(20, ["0", "1"]), (10, ["1"]), (2, [])])
def test_the_cap_can_be_restored_when_members_have_left(left: int, still: list[str]) -> None:
    found = outliers(20, local_max_ejection_percent=10)
    put(found, "500 " * 5, "0", 0.0)
    put(found, "500 " * 5, "1", 5.0)
    found.set_members([str(number) for number in range(left)])
    assert found.out == 2
    assert found.trim(6.0) == [name for name in ("0", "1") if name not in still]
    assert out(found) == still


def test_who_is_on_probation_is_let_back_before_who_is_out() -> None:
    found = outliers(20, local_max_ejection_percent=10, terms=Terms())
    put(found, "500 " * 5, "0", 0.0)
    put(found, "500 " * 5, "1", 25.0)
    found.sweep(54.9)
    assert [found.hosts[name].ejection.state for name in "01"] == [State.PROBATION, State.OUT]
    assert found.hosts["1"].ejection.until < found.hosts["0"].ejection.until
    found.set_members("0123456789")
    assert found.trim(54.9) == ["0"]


def test_chance_is_drawn_for_each_detection() -> None:
    draws = iter([0.99, 0.0, 0.0])
    rules = Rules(enforcing_consecutive_5xx=50, consecutive_gateway_failure=10**9)
    found = Outliers(rules, ENVOY, draws.__next__)
    found.set_members("abc")
    put(found, "500 " * 5, "a")
    assert out(found) == []
    put(found, "500 " * 5, "a")
    assert out(found) == ["a"]
