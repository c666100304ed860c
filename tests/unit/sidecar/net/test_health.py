"""grpc.health.v1, asked by grpcio's own client."""

from collections.abc import Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.net.health import HealthServer
from sidecar.settings import Address

Status = health_pb2.HealthCheckResponse


@pytest.fixture
def server() -> Iterator[HealthServer]:
    server = HealthServer(Address(host="127.0.0.1", port=0))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def stub(server: HealthServer) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def check(stub: health_pb2_grpc.HealthStub, service: str = "") -> int:
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
    return status


def watch(stub: health_pb2_grpc.HealthStub, service: str = "") -> grpc.Call:
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)


def test_not_serving_until_told(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    assert check(stub) == check(stub, "engine") == Status.NOT_SERVING
    server.set(True)
    assert check(stub) == check(stub, "engine") == Status.SERVING
    server.set_service("engine", False)
    assert (check(stub), check(stub, "engine")) == (Status.SERVING, Status.NOT_SERVING)


def test_check_does_not_know_what_nobody_set(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(stub, "other")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watch_hears_of_changes_only(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub)
    assert next(stream).status == Status.NOT_SERVING
    server.set(False)
    server.set(True)
    server.set(True)
    assert next(stream).status == Status.SERVING
    server.set(False)
    assert next(stream).status == Status.NOT_SERVING
    stream.cancel()


def test_watch_waits_for_a_name_to_appear(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub, "later")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    server.set_service("later", True)
    assert next(stream).status == Status.SERVING
    stream.cancel()


def test_drain_is_for_good(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    server.set(True)
    stream = watch(stub, "engine")
    assert next(stream).status == Status.SERVING
    server.drain()
    server.drain()
    assert next(stream).status == Status.NOT_SERVING
    server.set(True)
    assert check(stub) == check(stub, "engine") == Status.NOT_SERVING
    stream.cancel()


def test_watchers_take_no_thread_from_check(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    streams = [watch(stub) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert check(stub) == Status.NOT_SERVING
    for stream in streams:
        stream.cancel()


def test_stop_ends_the_watchers(server: HealthServer, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub)
    next(stream)
    server.stop()
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    server.stop()


def test_a_taken_address_is_an_os_error(server: HealthServer) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        HealthServer(Address(host="127.0.0.1", port=server.port)).start()
