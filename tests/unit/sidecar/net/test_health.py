"""grpc.health.v1, asked by grpcio's own client."""

from collections.abc import Callable, Iterator
from functools import partial

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.net.health import ENGINE, POD, HealthServer
from sidecar.values import Address

Status = health_pb2.HealthCheckResponse
LOCAL = Address(host="127.0.0.1", port=0)


class Services(dict[str, Callable[[], bool]]):
    """What each service says when it is asked; the server's own thread may ask while a test adds one."""

    def items(self) -> list[tuple[str, Callable[[], bool]]]:  # type: ignore[override]
        return list(super().items())


class Rig:
    """A server of two services, and what they say."""

    def __init__(self) -> None:
        self.well = {POD: False, ENGINE: False}
        self.services = Services({name: partial(self.well.__getitem__, name) for name in self.well})
        self.server = HealthServer(LOCAL, self.services)

    def say(self, service: str, well: bool) -> None:
        """From here on, and told at once."""
        self.well[service] = well
        self.server.refresh()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    rig.server.start()
    yield rig
    rig.server.stop()


@pytest.fixture
def stub(rig: Rig) -> Iterator[health_pb2_grpc.HealthStub]:
    with grpc.insecure_channel(f"127.0.0.1:{rig.server.port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def check(stub: health_pb2_grpc.HealthStub, service: str = "") -> int:
    status: int = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5).status
    return status


def watch(stub: health_pb2_grpc.HealthStub, service: str = "") -> grpc.Call:
    return stub.Watch(health_pb2.HealthCheckRequest(service=service), timeout=20)


def test_each_service_says_what_it_is_asked(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    assert check(stub) == check(stub, "engine") == Status.NOT_SERVING
    rig.say(POD, True)
    assert (check(stub), check(stub, "engine")) == (Status.SERVING, Status.NOT_SERVING)
    rig.say(ENGINE, True)
    assert check(stub) == check(stub, "engine") == Status.SERVING
    rig.say(POD, False)
    assert (check(stub), check(stub, "engine")) == (Status.NOT_SERVING, Status.SERVING)


def test_it_says_what_is_true_at_its_start() -> None:
    rig = Rig()
    rig.well[POD] = True
    rig.server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{rig.server.port}") as channel:
            assert check(health_pb2_grpc.HealthStub(channel)) == Status.SERVING
    finally:
        rig.server.stop()


def test_it_asks_by_itself(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    """Nobody has to turn for it: a stuck event loop is noticed."""
    stream = watch(stub)
    assert next(stream).status == Status.NOT_SERVING
    rig.well[POD] = True
    assert next(stream).status == Status.SERVING
    stream.cancel()


def test_check_does_not_know_what_nobody_set(stub: health_pb2_grpc.HealthStub) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        check(stub, "other")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_watch_hears_of_changes_only(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub)
    assert next(stream).status == Status.NOT_SERVING
    rig.say(POD, False)
    rig.say(POD, True)
    rig.say(POD, True)
    rig.say(ENGINE, True)
    assert next(stream).status == Status.SERVING
    rig.say(POD, False)
    assert next(stream).status == Status.NOT_SERVING
    stream.cancel()


def test_watch_waits_for_a_name_to_appear(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub, "later")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    rig.services["later"] = lambda: True
    rig.server.refresh()
    assert next(stream).status == Status.SERVING
    stream.cancel()


def test_drain_is_for_good(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    rig.say(POD, True)
    rig.say(ENGINE, True)
    stream = watch(stub, "engine")
    assert next(stream).status == Status.SERVING
    rig.server.drain()
    rig.server.drain()
    assert next(stream).status == Status.NOT_SERVING
    rig.say(POD, False)
    rig.say(POD, True)
    assert check(stub) == check(stub, "engine") == Status.NOT_SERVING
    stream.cancel()


def test_watchers_take_no_thread_from_check(stub: health_pb2_grpc.HealthStub) -> None:
    streams = [watch(stub) for _ in range(20)]
    for stream in streams:
        next(stream)
    assert check(stub) == Status.NOT_SERVING
    for stream in streams:
        stream.cancel()


def test_stop_ends_the_watchers(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub)
    next(stream)
    rig.server.stop()
    with pytest.raises(grpc.RpcError) as caught:
        next(stream)
    assert caught.value.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)
    rig.server.stop()


def test_a_taken_address_is_an_os_error(rig: Rig) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        HealthServer(Address(host="127.0.0.1", port=rig.server.port), {}).start()


def test_a_service_that_fails_once_is_asked_again(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    answers = iter([ZeroDivisionError(), True])

    def ask() -> bool:
        answer = next(answers, True)
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    stream = watch(stub, "moody")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    rig.services["moody"] = ask
    assert next(stream).status == Status.SERVING
    stream.cancel()
