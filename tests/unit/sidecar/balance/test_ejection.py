"""One engine out and back, and the two numbers that guard the others."""

import pytest

from sidecar.balance.ejection import Ejection, State, Terms, is_panic, most_out

ENVOY = Terms(probes=0)


def on_probation(terms: Terms | None = None) -> Ejection:
    """Since second 30."""
    ejection = Ejection(terms or Terms())
    assert ejection.eject(0.0)
    assert ejection.pass_time(30.0)
    assert ejection.state is State.PROBATION
    return ejection


@pytest.mark.parametrize(
    ("base", "most", "lasts"),
    [
        (30.0, 300.0, [30, 60, 90, 120, 150, 180, 210, 240, 270, 300, 300, 300, 300]),
        (30.0, 100.0, [30, 60, 90, 100, 100]),
        (30.0, 30.0, [30, 30]),
        (1.0, 2.5, [1, 2, 2.5, 2.5]),
    ],
)
def test_each_ejection_lasts_longer_up_to_the_maximum(base: float, most: float, lasts: list[float]) -> None:
    ejection = Ejection(Terms(base_ejection_time_s=base, max_ejection_time_s=most, probes=0))
    now, seen = 0.0, []
    for expected in lasts:
        assert ejection.next_s == expected
        assert ejection.eject(now)
        seen.append(ejection.until - now)
        now = ejection.until
        assert ejection.pass_time(now)
    assert seen == lasts


def test_times_grow_no_further_than_the_maximum_needs() -> None:
    """Envoy: while backoff x base < max + base; so ten quiet intervals forgive a hundred ejections."""
    ejection = Ejection(ENVOY)
    for _ in range(100):
        ejection.eject(0.0)
        ejection.pass_time(1e9)
    assert ejection.times == 11


def test_it_is_out_up_to_the_second() -> None:
    ejection = Ejection(ENVOY)
    ejection.eject(5.0, jitter_s=2.0)
    assert not ejection.pass_time(36.99)
    assert ejection.state is State.OUT
    assert ejection.is_out
    assert ejection.share(36.99) == 0.0
    assert ejection.pass_time(37.0)
    assert ejection.state is State.IN
    assert not ejection.is_out
    assert not ejection.pass_time(99.0)


def test_who_is_out_is_not_ejected_again() -> None:
    ejection = Ejection(ENVOY)
    assert ejection.eject(0.0)
    assert not ejection.eject(10.0)
    assert (ejection.until, ejection.times) == (30.0, 1)


@pytest.mark.parametrize(("since", "times"), [(9.9, 2), (10.0, 1)])
def test_an_interval_without_makes_the_next_one_shorter(since: float, times: int) -> None:
    ejection = Ejection(ENVOY)
    ejection.eject(0.0)
    ejection.pass_time(30.0)
    ejection.eject(30.0)
    ejection.forgive(1000.0, 10.0)
    assert ejection.times == 2, "nothing is forgiven to one that is out"
    ejection.pass_time(90.0)
    ejection.forgive(90.0 + since, 10.0)
    assert ejection.times == times


def test_forgiving_has_a_floor_and_is_not_for_one_that_was_never_out() -> None:
    ejection = Ejection(ENVOY)
    ejection.forgive(100.0, 10.0)
    ejection.eject(100.0)
    ejection.pass_time(130.0)
    for _ in range(3):
        ejection.forgive(200.0, 10.0)
    assert ejection.times == 0
    assert ejection.next_s == 30.0


def test_three_good_ones_one_at_a_time_and_it_is_back() -> None:
    ejection = on_probation()
    assert ejection.is_out, "it holds its place under the cap"
    assert ejection.share(31.0) == 0.1
    for at in (31.0, 32.0, 33.0):
        assert ejection.state is State.PROBATION
        probe = ejection.try_one()
        assert probe
        assert not ejection.try_one()
        assert ejection.on_tried(probe, True, at)
    assert ejection.state is State.IN
    assert ejection.share(34.0) == 0.1
    assert ejection.share(48.0) == 0.5


def test_a_failure_on_probation_is_due_for_a_longer_ejection() -> None:
    ejection = on_probation()
    ejection.on_tried(ejection.try_one(), True, 31.0)
    ejection.on_tried(ejection.try_one(), True, 32.0)
    assert not ejection.on_tried(ejection.try_one(), False, 33.0)
    assert ejection.eject(33.0)
    assert ejection.until == 33.0 + 60.0
    assert ejection.pass_time(93.0)
    for _ in range(2):
        ejection.on_tried(ejection.try_one(), True, 94.0)
    assert ejection.state is State.PROBATION, "good ones of before count no more"


def test_one_that_says_nothing_makes_room_for_another() -> None:
    ejection = on_probation()
    assert ejection.on_tried(ejection.try_one(), None, 31.0)
    for _ in range(2):
        ejection.on_tried(ejection.try_one(), True, 32.0)
    assert ejection.state is State.PROBATION
    assert ejection.try_one()


def test_what_began_on_an_earlier_probation_says_nothing() -> None:
    ejection = on_probation()
    old = ejection.try_one()
    assert ejection.pass_time(60.0)
    ejection.eject(60.0)
    ejection.pass_time(120.0)
    assert ejection.on_tried(old, False, 121.0)
    new = ejection.try_one()
    assert ejection.on_tried(old, False, 122.0)
    assert not ejection.try_one(), "the new one is still under way"
    assert not ejection.on_tried(new, False, 123.0)


def test_nothing_is_tried_but_on_probation() -> None:
    ejection = Ejection(Terms())
    assert not ejection.try_one()
    ejection.eject(0.0)
    assert not ejection.try_one()
    assert ejection.on_tried(0, False, 1.0)


def test_probation_ends_without_traffic_and_with_one_that_hangs() -> None:
    ejection = on_probation()
    assert ejection.try_one()
    assert not ejection.pass_time(59.9)
    assert ejection.pass_time(60.0)
    assert ejection.state is State.IN


def test_until_when_a_place_is_needed_that_it_has() -> None:
    ejection = Ejection(Terms())
    ejection.eject(0.0, jitter_s=2.0)
    assert ejection.free_at == 62.0
    ejection.pass_time(32.0)
    assert ejection.free_at == 62.0
    ejection.eject(40.0)
    assert ejection.free_at == 130.0
    without = Ejection(ENVOY)
    without.eject(0.0)
    assert without.free_at == 30.0


def test_how_long_a_place_is_needed() -> None:
    ejection = Ejection(Terms())
    assert ejection.longest_s == 30.0 + 30.0
    ejection.eject(0.0)
    assert ejection.longest_s == 60.0 + 30.0
    assert Ejection(ENVOY).longest_s == 30.0


@pytest.mark.parametrize(
    ("window", "since", "share"),
    [(30, 0.0, 0.1), (30, 3.0, 0.1), (30, 6.0, 0.2), (30, 30.0, 1.0), (30, 99.0, 1.0), (0, 0.0, 1.0)],
)
def test_slow_start(window: float, since: float, share: float) -> None:
    ejection = Ejection(Terms(slow_start_s=window, probes=0))
    assert ejection.share(0.0) == 1.0, "who was never out has its full share"
    ejection.eject(0.0)
    ejection.pass_time(30.0)
    assert ejection.share(30.0 + since) == pytest.approx(share)


@pytest.mark.parametrize(
    ("members", "percent", "most"),
    [
        (0, 10, 0),
        (1, 100, 1),
        (2, 20, 0),
        (2, 50, 1),
        (3, 0, 1),  # of three and more always one
        (3, 10, 1),
        (9, 10, 1),  # where Envoy's default ejects nothing
        (10, 10, 1),
        (19, 10, 1),
        (20, 10, 2),
        (9, 20, 1),
        (10, 20, 2),
        (5, 100, 5),
        (5, 150, 5),
    ],
)
def test_most_out(members: int, percent: int, most: int) -> None:
    assert most_out(members, percent) == most


@pytest.mark.parametrize("members", range(1, 60))
@pytest.mark.parametrize("percent", [0, 1, 10, 20, 33, 50, 99, 100])
def test_most_out_is_envoys_question_asked_in_advance(members: int, percent: int) -> None:
    """Envoy: eject iff 100 (out + 1) / members <= percent, or always_eject_one_host and nobody is out."""
    out = 0
    while 100.0 * (out + 1) <= percent * members or (members >= 3 and out == 0):
        out += 1
    assert most_out(members, percent) == out


@pytest.mark.parametrize(
    ("well", "members", "threshold", "panic"),
    [
        (49, 100, 50, True),
        (50, 100, 50, False),  # strictly fewer
        (25, 100, 50, True),
        (71, 100, 50, False),
        (1, 2, 50, False),
        (0, 2, 50, True),
        (1, 3, 50, True),
        (0, 3, 0, False),  # disabled
        (0, 0, 50, False),
        (5, 100, 50, True),
        (65, 100, 50, False),
    ],
)
def test_panic(well: int, members: int, threshold: int, panic: bool) -> None:
    assert is_panic(well, members, threshold) is panic
