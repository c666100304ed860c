"""What the gateway makes of what pods say of themselves: real Envoy, its shipped configuration."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import gateway
from mesh.gateway import Address, Sidecar
from sidecar.net.health import HealthServer
from sidecar.values import Address as Listen
from tests.harness.processes import HOST, envoy, free_ports, get, wait_until

pytestmark = pytest.mark.integration


class Pod:
    """The health of a pod whose requests nobody takes."""

    def __init__(self) -> None:
        self.well = True
        self.server = HealthServer(Listen(HOST, 0), lambda: {"": self.well, "engine": True})
        self.server.start()

    def say(self, well: bool) -> None:
        self.well = well
        self.server.refresh()


@pytest.fixture
def pods() -> Iterator[list[Pod]]:
    pods = [Pod(), Pod()]
    yield pods
    for pod in pods:
        pod.server.stop()


@contextlib.contextmanager
def running_gateway(pods: list[Pod], folder: Path, threshold: int) -> Iterator[str]:
    """Its admin address. Silence takes a pod out after so many checks."""
    listen, admin, *requests = (Address(HOST, port) for port in free_ports(2 + len(pods)))
    sidecars = [Sidecar(at, pod.server.port) for at, pod in zip(requests, pods, strict=True)]
    document = gateway.render(gateway.shipped(), listen=listen, admin=admin, sidecars=sidecars)
    (cluster,) = (one for one in document["static_resources"]["clusters"] if one["name"] == "pods")
    (checks,) = cluster["health_checks"]
    assert checks["unhealthy_threshold"] == 2
    checks["unhealthy_threshold"] = threshold
    file = folder / "envoy.yaml"
    file.write_text(gateway.dump(document), "utf-8")
    with envoy(file, f"http://{admin}"):
        yield f"http://{admin}"


def well(admin: str) -> int:
    """Pods that get requests."""
    stats = json.loads(get(f"{admin}/stats?format=json&filter=^cluster.pods.membership_healthy$"))
    return int(stats["stats"][0]["value"])


def test_what_a_pod_says_counts_at_once(pods: list[Pod], tmp_path: Path) -> None:
    """No threshold is counted: so many checks would take half an hour."""
    with running_gateway(pods, tmp_path, threshold=1000) as admin:
        wait_until(lambda: well(admin) == 2, what="both are well")
        pods[0].say(False)
        wait_until(lambda: well(admin) == 1, what="one is not")
        pods[0].say(True)
        wait_until(lambda: well(admin) == 2, what="it is back")
        pods[0].server.drain()
        wait_until(lambda: well(admin) == 1, what="it drains")
        pods[1].server.drain()
        wait_until(lambda: well(admin) == 0, what="so does the other")


def test_a_pod_that_is_gone_is_out_after_two_checks(pods: list[Pod], tmp_path: Path) -> None:
    with running_gateway(pods, tmp_path, threshold=2) as admin:
        wait_until(lambda: well(admin) == 2, what="both are well")
        pods[0].server.stop()
        wait_until(lambda: well(admin) == 1, what="one is gone")
