"""Which endpoint an attempt goes to."""

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.exchange import FORWARDED
from sidecar.stages.pick import Pick
from tests.harness.clock import FakeClock
from tests.unit.sidecar.stages.asker import Asker


def rig(*endpoints: Endpoint) -> Asker:
    clock = FakeClock()
    return Asker(Pick(endpoints, clock, 5.0), clock=clock)


@pytest.mark.parametrize(
    ("in_flight", "healthy", "chosen"),
    [
        ([0], [True], 0),
        ([2, 1], [True, True], 1),
        ([1, 1], [True, True], 0),
        ([0, 7], [False, True], 1),
        ([3, 2, 1], [True, True, False], 1),
    ],
)
def test_the_healthy_one_with_the_least_in_flight(
    in_flight: list[int], healthy: list[bool], chosen: int
) -> None:
    endpoints = [Endpoint("h", port) for port in range(len(in_flight))]
    for endpoint, count, well in zip(endpoints, in_flight, healthy, strict=True):
        endpoint.in_flight, endpoint.healthy = count, well
    asker = rig(*endpoints)
    x = asker.ask()
    assert x.endpoint is endpoints[chosen]
    assert (x.state, x.dispatched) == (FORWARDED, asker.clock.now())
    assert endpoints[chosen].in_flight == in_flight[chosen] + 1


def test_without_a_healthy_one_the_caller_may_return_when_it_is_asked_again() -> None:
    endpoint = Endpoint("h", 1)
    endpoint.healthy = False
    asker = rig(endpoint)
    x = asker.ask()
    assert (asker.reason(x), asker.answers[x].retry_after_s) == ("no_endpoint", 6.0)
    assert (x.endpoint, endpoint.in_flight) == (None, 0)


def test_what_was_taken_is_given_back_once_whatever_became_of_the_engine() -> None:
    endpoint = Endpoint("h", 1)
    x = rig(endpoint).ask()
    endpoint.healthy = False
    x.pipeline.complete(x)
    x.pipeline.complete(x)
    assert endpoint.in_flight == 0
    assert x.endpoint is endpoint, "the record names it"


def test_every_attempt_chooses_again() -> None:
    first, second = Endpoint("h", 1), Endpoint("h", 2)
    asker = rig(first, second)
    x = asker.ask()
    first.healthy = False
    asker.clock.advance(1.0)
    x.pipeline.retry(x, at=0)
    assert (x.endpoint, x.dispatched) == (second, asker.clock.now())
    assert (first.in_flight, second.in_flight) == (0, 1)
