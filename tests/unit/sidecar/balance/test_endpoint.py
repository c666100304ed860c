"""How an engine is called, and what is known about it."""

from math import exp

import pytest

from sidecar.balance.endpoint import Endpoint

NOW = 1000.0


@pytest.mark.parametrize(
    ("endpoint", "name"),
    [
        (Endpoint("127.0.0.1", 8000), "127.0.0.1:8000"),
        (Endpoint("::1", 8000), "[::1]:8000"),
        (Endpoint(path="/run/engine.sock"), "unix:/run/engine.sock"),
    ],
)
def test_name(endpoint: Endpoint, name: str) -> None:
    assert endpoint.name == name


def test_it_is_well_and_free_until_somebody_says_otherwise() -> None:
    endpoint = Endpoint("h", 1)
    assert (endpoint.healthy, endpoint.usable, endpoint.in_flight) == (True, True, 0)
    assert endpoint.blocked_until < NOW


def test_what_it_works_on_is_counted() -> None:
    endpoint = Endpoint("h", 1)
    endpoint.carried["a"] = endpoint.carried["b"] = None
    assert endpoint.in_flight == 2


@pytest.mark.parametrize(
    ("source", "value"), [("healthy", False), ("hung", True), ("ejected", True)]
)
def test_each_source_alone_speaks_against_it(source: str, value: bool) -> None:
    endpoint = Endpoint("h", 1)
    setattr(endpoint, source, value)
    assert not endpoint.usable


def test_blocking_says_nothing_of_its_health() -> None:
    endpoint = Endpoint("h", 1)
    endpoint.block(NOW)
    assert endpoint.usable


def blocks(endpoint: Endpoint, count: int, now: float = NOW) -> list[float]:
    """How long it was blocked, each time from when it was free again."""
    found = []
    for _ in range(count):
        endpoint.block(now)
        found.append(endpoint.blocked_until - now)
        now = endpoint.blocked_until
    return found


def test_blocks_double_up_to_the_longest() -> None:
    endpoint = Endpoint("h", 1)
    assert blocks(endpoint, 40) == pytest.approx([0.5, 1, 2, 4, 8] + [10] * 35)


def test_failures_that_were_under_way_together_are_one() -> None:
    endpoint = Endpoint("h", 1)
    for after in (0.0, 0.1, 0.4):
        endpoint.block(NOW + after)
    assert endpoint.blocked_until == NOW + 0.5
    endpoint.block(NOW + 0.5)
    assert endpoint.blocked_until == NOW + 1.5


def test_one_success_ends_it() -> None:
    endpoint = Endpoint("h", 1)
    blocks(endpoint, 5)
    endpoint.unblock()
    assert endpoint.blocked_until <= NOW
    assert blocks(endpoint, 2) == [0.5, 1.0]


def test_a_first_byte_that_takes_longer_counts_at_once() -> None:
    endpoint = Endpoint("h", 1)
    for seconds in (0.5, 2.0):
        endpoint.sample(seconds, NOW)
        assert endpoint.expected_s(NOW) == seconds


def test_one_that_comes_sooner_counts_slowly() -> None:
    endpoint = Endpoint("h", 1)
    endpoint.sample(2.0, NOW)
    endpoint.sample(1.0, NOW)
    assert endpoint.expected_s(NOW) == 2.0, "no time has passed"
    endpoint.sample(1.0, NOW + 10)
    assert endpoint.expected_s(NOW + 10) == pytest.approx(1 + exp(-1))


def test_what_is_not_asked_is_forgotten() -> None:
    endpoint = Endpoint("h", 1)
    endpoint.sample(2.0, NOW)
    assert endpoint.expected_s(NOW + 10) == pytest.approx(2 * exp(-1))
    assert endpoint.expected_s(NOW + 1e6) == 0.001
    endpoint.sample(0.0, NOW + 1e6)
    assert endpoint.expected_s(NOW + 1e6) == 0.001, "it never costs nothing"
