"""How an engine is called."""

import pytest

from sidecar.balance.endpoint import Endpoint


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
    assert (endpoint.healthy, endpoint.in_flight) == (True, 0)
