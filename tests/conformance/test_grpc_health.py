"""grpc.health.v1 of a pod as the kubelet sees it, by the cases of pkg/probe/grpc/grpc_test.go."""

import threading
from collections.abc import Iterator

import pytest

from sidecar.net.health import HealthServer
from sidecar.values import Address
from tests.harness.health_servers import HOST, health_server, said, speaks_http1, tcp_server
from tests.harness.kubelet import Result, probe
from tests.harness.processes import free_port

LOCAL = Address(host=HOST, port=0)


class Pod:
    """What it says of itself, and where."""

    def __init__(self) -> None:
        self.says = {"": True, "engine": True, "llama": True}
        self.server = HealthServer(LOCAL, lambda: self.says)
        self.server.start()


@pytest.fixture
def pod() -> Iterator[Pod]:
    pod = Pod()
    yield pod
    pod.server.stop()


@pytest.mark.parametrize("service", ["", "engine", "llama"])
def test_a_pod_that_serves(pod: Pod, service: str) -> None:
    assert probe(HOST, pod.server.port, service) == Result(True)


@pytest.mark.parametrize("service", ["", "engine", "llama"])
def test_a_service_that_does_not(pod: Pod, service: str) -> None:
    pod.says = {**pod.says, service: False}
    pod.server.refresh()
    refused = Result(False, 'service unhealthy (responded with "NOT_SERVING")')
    for name in pod.says:
        assert probe(HOST, pod.server.port, name) == (refused if name == service else Result(True))


@pytest.mark.parametrize("service", ["", "engine", "llama"])
def test_a_pod_that_drains(pod: Pod, service: str) -> None:
    pod.server.drain()
    refused = Result(False, 'service unhealthy (responded with "NOT_SERVING")')
    assert probe(HOST, pod.server.port, service) == refused


def test_a_service_that_is_not_there(pod: Pod) -> None:
    assert probe(HOST, pod.server.port, "Llama") == Result(
        False, "error: health rpc probe failed: NOT_FOUND: there is no such service here"
    )


def test_nobody_listens_any_more(pod: Pod) -> None:
    pod.server.stop()
    port = pod.server.port
    assert probe(HOST, port, timeout_s=0.3) == Result(
        False, f'timeout: failed to connect service "{HOST}:{port}" within 0.3s'
    )


# The probe itself: the cases that need another server.


def test_nobody_listens() -> None:
    port = free_port()
    message = f'timeout: failed to connect service "{HOST}:{port}" within 0.3s'
    assert probe(HOST, port, timeout_s=0.3) == Result(False, message)


def test_a_server_of_http_1() -> None:
    with tcp_server(speaks_http1) as port:
        result = probe(HOST, port, timeout_s=0.3)
    assert result == Result(False, f'timeout: failed to connect service "{HOST}:{port}" within 0.3s')


def test_a_server_without_the_protocol() -> None:
    with health_server() as port:
        result = probe(HOST, port)
    protocol = "the grpc health protocol (grpc.health.v1.Health)"
    assert result == Result(False, f"error: this server does not implement {protocol}: Method not found!")


def test_a_server_that_is_too_slow() -> None:
    over = threading.Event()

    def check(*_: object) -> bytes:
        over.wait(20)
        return said(1)

    with health_server(check) as port:
        result = probe(HOST, port, timeout_s=0.3)
        over.set()
    assert result == Result(False, "timeout: health rpc did not complete within 0.3s")
