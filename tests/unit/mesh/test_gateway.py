"""Rendering replaces what the shipped file marks, and nothing else."""

import copy
from typing import Any

import pytest
import yaml

from mesh import gateway
from mesh.gateway import Address, Sidecar

LISTEN = Address("127.0.0.1", 8001)
ADMIN = Address("127.0.0.1", 9902)


def rendered(collector: Address | None = None, pods: int = 2) -> dict[str, Any]:
    numbers = range(1, pods + 1)
    sidecars = [Sidecar(Address(f"10.0.0.{number}", 8079 + number), 9911 + number) for number in numbers]
    return gateway.render(
        gateway.shipped(), listen=LISTEN, admin=ADMIN, sidecars=sidecars, collector=collector
    )


def manager(document: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager."""
    (listener,) = document["static_resources"]["listeners"]
    (chain,) = listener["filter_chains"]
    (network_filter,) = chain["filters"]
    settings: dict[str, Any] = network_filter["typed_config"]
    return settings


def route(document: dict[str, Any]) -> dict[str, Any]:
    (host,) = manager(document)["route_config"]["virtual_hosts"]
    (only,) = host["routes"]
    action: dict[str, Any] = only["route"]
    return action


def clusters(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cluster["name"]: cluster for cluster in document["static_resources"]["clusters"]}


def endpoints(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    (locality,) = cluster["load_assignment"]["endpoints"]
    return [member["endpoint"] for member in locality["lb_endpoints"]]


def socket(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def test_every_sidecar_is_an_endpoint_with_its_own_health_port() -> None:
    assert endpoints(clusters(rendered())["pods"]) == [
        {"address": socket("10.0.0.1", 8080), "health_check_config": {"port_value": 9912}},
        {"address": socket("10.0.0.2", 8081), "health_check_config": {"port_value": 9913}},
    ]


def test_listener_and_admin_are_where_they_were_asked_to_be() -> None:
    document = rendered()
    (listener,) = document["static_resources"]["listeners"]
    assert listener["address"] == socket("127.0.0.1", 8001)
    assert document["admin"]["address"] == socket("127.0.0.1", 9902)


def test_without_a_collector_nothing_is_traced() -> None:
    document = rendered()
    assert "tracing" not in manager(document)
    assert set(clusters(document)) == {"pods"}


def test_with_a_collector_spans_go_there() -> None:
    document = rendered(Address("10.0.0.9", 4318))
    exporter = manager(document)["tracing"]["provider"]["typed_config"]["http_service"]["http_uri"]
    collector = clusters(document)[exporter["cluster"]]
    assert endpoints(collector) == [{"address": socket("10.0.0.9", 4318)}]


def test_a_stream_is_ended_by_silence_and_not_by_its_length() -> None:
    for document in (gateway.shipped(), rendered()):
        assert route(document)["timeout"] == "0s"
        assert manager(document)["stream_idle_timeout"] == "630s"


@pytest.mark.parametrize(("pods", "retries"), [(0, 1), (1, 1), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_no_pod_is_asked_twice(pods: int, retries: int) -> None:
    assert route(rendered(pods=pods))["retry_policy"]["num_retries"] == retries


def test_a_refusal_is_repeated_only_where_there_is_another_pod() -> None:
    policies = [route(rendered(pods=pods))["retry_policy"]["retry_on"] for pods in (1, 2)]
    assert policies == [
        "connect-failure,reset-before-request",
        "connect-failure,reset-before-request,retriable-headers",
    ]


def test_everything_else_is_as_shipped() -> None:
    original = gateway.shipped()
    # As many as there are tries.
    sidecars = [Sidecar(Address("127.0.0.1", 8080 + number), 9912 + number) for number in range(4)]
    cluster = clusters(original)["pods"]
    cluster.update(clusters(gateway.render(original, listen=LISTEN, admin=ADMIN, sidecars=sidecars))["pods"])
    before = copy.deepcopy(original)
    document = gateway.render(
        original,
        listen=Address("0.0.0.0", 8000),
        admin=Address("127.0.0.1", 9901),
        sidecars=sidecars,
        collector=Address("127.0.0.1", 4318),
    )
    assert document == before
    assert original == before, "the caller's document was changed"


def test_what_is_dumped_reads_back() -> None:
    assert yaml.safe_load(gateway.dump(rendered())) == rendered()


def test_addresses_of_both_families() -> None:
    assert str(Address("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(Address("::1", 80)) == "[::1]:80"
