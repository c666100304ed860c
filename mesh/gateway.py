"""The shipped Envoy configuration, envoy/gateway.yaml, rendered for a list of sidecars.

The file is the configuration: it is valid as it stands, and rendering only replaces what it marks as
PLACEHOLDER, leaves its tracing out when there is no collector, and retries no more often than there are other
pods. What Envoy does and why is written there.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final

import yaml

Document = dict[str, Any]

PODS: Final = "pods"
COLLECTOR: Final = "otel_collector"


@dataclass(frozen=True, slots=True)
class Address:
    """Where something listens; `host` is an IP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Sidecar:
    """One endpoint of the gateway: a sidecar's client listener and its gRPC health port."""

    address: Address
    health_port: int


def shipped_folder() -> Traversable:
    """The folder of Envoy files: inside the package when installed, beside it in a checkout."""
    packaged = resources.files("mesh") / "envoy"
    return packaged if packaged.is_dir() else Path(__file__).parents[1] / "envoy"


def shipped() -> Document:
    """gateway.yaml as it is shipped."""
    document: Document = yaml.safe_load((shipped_folder() / "gateway.yaml").read_text("utf-8"))
    return document


def render(
    document: Document,
    *,
    listen: Address,
    admin: Address,
    sidecars: Sequence[Sidecar],
    collector: Address | None = None,
) -> Document:
    """A copy of `document` for these addresses. Without a collector (OTLP over HTTP) nothing is traced."""
    static = document["static_resources"]
    clusters = [_cluster(cluster, sidecars, collector) for cluster in static["clusters"]]
    return {
        **document,
        "admin": {**document["admin"], "address": socket_address(admin)},
        "static_resources": {
            **static,
            "listeners": [
                _listener(listener, listen, collector, len(sidecars)) for listener in static["listeners"]
            ],
            "clusters": [cluster for cluster in clusters if cluster is not None],
        },
    }


def dump(document: Document) -> str:
    """The YAML that Envoy reads."""
    return yaml.safe_dump(document, sort_keys=False, width=110)


def socket_address(address: Address) -> Document:
    """As Envoy writes it."""
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _listener(listener: Document, listen: Address, collector: Address | None, pods: int) -> Document:
    rendered: Document = copy.deepcopy(listener)
    rendered["address"] = socket_address(listen)
    for network_filter in (each for chain in rendered["filter_chains"] for each in chain["filters"]):
        settings = network_filter["typed_config"]
        if collector is None:
            settings.pop("tracing", None)
        for host in settings["route_config"]["virtual_hosts"]:
            for route in host["routes"]:
                _limit_retries(route["route"]["retry_policy"], pods)
    return rendered


def _limit_retries(policy: Document, pods: int) -> None:
    """One try for each pod, and no more than the file allows.

    A refusal names another pod; where all have been asked, asking the first again delays the caller and loads
    who is full. With a single pod no refusal is repeated, but one retry is left for its connections: one that
    the sidecar closes just as Envoy takes it from its pool says nothing of the next.
    """
    policy["num_retries"] = max(1, min(policy["num_retries"], pods - 1))
    if pods < 2:
        causes = policy["retry_on"].split(",")
        policy["retry_on"] = ",".join(cause for cause in causes if cause != "retriable-headers")


def _cluster(cluster: Document, sidecars: Sequence[Sidecar], collector: Address | None) -> Document | None:
    if cluster["name"] == PODS:
        return _with_endpoints(cluster, [_endpoint(sidecar) for sidecar in sidecars])
    if cluster["name"] == COLLECTOR:
        return _with_endpoints(cluster, [{"address": socket_address(collector)}]) if collector else None
    return cluster


def _endpoint(sidecar: Sidecar) -> Document:
    return {
        "address": socket_address(sidecar.address),
        "health_check_config": {"port_value": sidecar.health_port},
    }


def _with_endpoints(cluster: Document, endpoints: Sequence[Document]) -> Document:
    assignment = cluster["load_assignment"]
    members = [{"lb_endpoints": [{"endpoint": endpoint} for endpoint in endpoints]}]
    return {**cluster, "load_assignment": {**assignment, "endpoints": members}}
