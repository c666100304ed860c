"""What the Envoys that we are compared with are told to do. That they accept it: integration."""

import pytest

from mesh.bench import envoys
from mesh.gateway import Address, Document

LISTEN, ADMIN = Address("127.0.0.1", 20001), Address("127.0.0.1", 20002)
ENGINES = [Address("127.0.0.1", 20003), Address("127.0.0.1", 20004)]
OVERLOAD = [envoys.adaptive, envoys.admission, envoys.fifo]
EVERY = pytest.mark.parametrize("build", [*OVERLOAD, envoys.outlier])


def manager(document: Document) -> Document:
    (listener,) = document["static_resources"]["listeners"]
    settings: Document = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return settings


def cluster(document: Document) -> Document:
    (found,) = document["static_resources"]["clusters"]
    assert isinstance(found, dict)
    return found


@EVERY
def test_all_spread_by_least_request_over_all_engines(build: envoys.Builder) -> None:
    found = cluster(build(LISTEN, ADMIN, ENGINES))
    assert found["lb_policy"] == "LEAST_REQUEST"
    ports = [
        member["endpoint"]["address"]["socket_address"]["port_value"]
        for member in found["load_assignment"]["endpoints"][0]["lb_endpoints"]
    ]
    assert ports == [20003, 20004]


@EVERY
def test_no_long_stream_is_cut(build: envoys.Builder) -> None:
    settings = manager(build(LISTEN, ADMIN, ENGINES))
    assert settings["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["timeout"] == "0s"


@pytest.mark.parametrize("build", OVERLOAD)
def test_nothing_that_ran_is_repeated(build: envoys.Builder) -> None:
    settings = manager(build(LISTEN, ADMIN, ENGINES))
    route = settings["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["retry_policy"]["retry_on"] == "connect-failure,reset-before-request"


@EVERY
def test_only_the_protection_itself_limits(build: envoys.Builder) -> None:
    (threshold,) = cluster(build(LISTEN, ADMIN, ENGINES))["circuit_breakers"]["thresholds"]
    limits = (threshold["max_connections"], threshold["max_pending_requests"], threshold["max_requests"])
    assert min(limits) >= 1_000_000


def test_each_has_its_one_protection() -> None:
    def filters(build: envoys.Builder) -> list[str]:
        document = build(LISTEN, ADMIN, ENGINES)
        return [each["name"].rpartition(".")[2] for each in manager(document)["http_filters"]]

    assert filters(envoys.adaptive) == ["adaptive_concurrency", "router"]
    assert filters(envoys.admission) == ["admission_control", "router"]
    assert filters(envoys.fifo) == ["router"]


def test_the_adaptive_limit_is_of_all_engines_together() -> None:
    guard = manager(envoys.adaptive(LISTEN, ADMIN, ENGINES))["http_filters"][0]["typed_config"]
    gradient = guard["gradient_controller_config"]
    assert gradient["concurrency_limit_params"]["max_concurrency_limit"] == 2 * envoys.ADAPTIVE_MOST
    assert gradient["min_rtt_calc_params"]["min_concurrency"] == 2 * envoys.ADAPTIVE_LEAST


def test_the_queue_has_connections_to_each_engine() -> None:
    breakers = cluster(envoys.fifo(LISTEN, ADMIN, ENGINES))["circuit_breakers"]
    assert breakers["per_host_thresholds"] == [
        {"priority": "DEFAULT", "max_connections": envoys.FIFO_CONNECTIONS}
    ]


def test_failures_are_tried_elsewhere_and_their_engines_left() -> None:
    document = envoys.outlier(LISTEN, ADMIN, ENGINES)
    found = cluster(document)
    assert found["health_checks"][0]["http_health_check"] == {"path": "/health"}
    assert found["outlier_detection"]["max_ejection_percent"] == 50
    (threshold,) = found["circuit_breakers"]["thresholds"]
    assert threshold["retry_budget"]["budget_percent"] == {"value": 20}
    route = manager(document)["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert route["retry_policy"]["retry_on"] == "5xx"
    assert route["retry_policy"]["retry_host_predicate"]
