"""grpc.health.v1, asked by grpcio's own client."""

import logging
import socket
import time
from collections.abc import Callable, Iterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.net.health import HealthServer
from sidecar.plane import ENGINE, POD
from sidecar.values import Address

Status = health_pb2.HealthCheckResponse
LOCAL = Address(host="127.0.0.1", port=0)


class Rig:
    """A server of two services at first, and what they say."""

    def __init__(self) -> None:
        self.well = {POD: False, ENGINE: False}
        self.server = HealthServer(LOCAL, lambda: dict(self.well))

    def say(self, service: str, well: bool) -> None:
        """From here on, and told at once."""
        self.well = {**self.well, service: well}  # the server's own thread may be asking
        self.server.refresh()

    def forget(self, service: str) -> None:
        """It is there no more."""
        self.well = {name: well for name, well in self.well.items() if name != service}
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


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Of HTTP/2."""
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def field(name: bytes, value: bytes) -> bytes:
    """Of a head, as HPACK's literal without an index."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


WATCH_HEAD = (
    field(b":method", b"POST")
    + field(b":scheme", b"http")
    + field(b":path", b"/grpc.health.v1.Health/Watch")
    + field(b":authority", b"a")
    + field(b"content-type", b"application/grpc")
    + field(b"te", b"trailers")
)
# Watches the whole server, over a connection whose flow-control window for answers is empty.
DEAF_WATCH = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    + frame(4, 0, 0, bytes([0, 4, 0, 0, 0, 0]))
    + frame(1, 4, 1, WATCH_HEAD)
    + frame(0, 1, 1, bytes(5))
)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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


def test_watch_hears_of_names_that_come_and_go(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    stream = watch(stub, "later")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    rig.say("later", True)
    assert next(stream).status == Status.SERVING
    rig.forget("later")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    with pytest.raises(grpc.RpcError) as caught:
        check(stub, "later")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    rig.say("later", False)
    assert next(stream).status == Status.NOT_SERVING
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
    assert caught.value.code() == grpc.StatusCode.CANCELLED
    rig.server.stop()


def test_a_taken_address_is_an_os_error(rig: Rig) -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        HealthServer(Address(host="127.0.0.1", port=rig.server.port), dict).start()


def test_who_fails_once_is_asked_again(
    rig: Rig, stub: health_pb2_grpc.HealthStub, caplog: pytest.LogCaptureFixture
) -> None:
    answers = iter([ZeroDivisionError()])

    def ask() -> dict[str, bool]:
        for error in answers:
            raise error
        return {"moody": True}

    stream = watch(stub, "moody")
    assert next(stream).status == Status.SERVICE_UNKNOWN
    with caplog.at_level(logging.ERROR, "headgate"):
        rig.server._ask = ask
        assert next(stream).status == Status.SERVING
    assert caplog.text.count("could not be asked") == 1
    stream.cancel()


def listed(stub: health_pb2_grpc.HealthStub) -> dict[str, int]:
    answer = stub.List(health_pb2.HealthListRequest(), timeout=5)
    return {name: response.status for name, response in answer.statuses.items()}


def test_all_services_are_listed_up_to_a_hundred(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    rig.say(ENGINE, True)
    assert listed(stub) == {POD: Status.NOT_SERVING, ENGINE: Status.SERVING}
    rig.well |= {f"model-{i}": True for i in range(98)}
    rig.server.refresh()
    assert len(listed(stub)) == 100
    rig.say("model-98", True)
    with pytest.raises(grpc.RpcError) as caught:
        listed(stub)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert check(stub, "model-98") == Status.SERVING
    rig.forget("model-0")
    assert len(listed(stub)) == 100


def test_a_drain_is_listed(rig: Rig, stub: health_pb2_grpc.HealthStub) -> None:
    rig.say(POD, True)
    rig.server.drain()
    rig.say("later", True)
    assert listed(stub) == {POD: Status.NOT_SERVING, ENGINE: Status.NOT_SERVING}


def test_there_are_only_so_many_watchers(
    rig: Rig, stub: health_pb2_grpc.HealthStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.net.health._MOST_WATCHERS", 2)
    streams = [watch(stub, name) for name in ("", "other")]
    for stream in streams:
        next(stream)
    with pytest.raises(grpc.RpcError) as caught:
        next(watch(stub))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    streams[0].cancel()
    until(lambda: len(rig.server._servicer._watchers) == 1)
    last = watch(stub)
    assert next(last).status == Status.NOT_SERVING
    for stream in (streams[1], last):
        stream.cancel()
    until(lambda: not rig.server._servicer._watchers)


def test_who_reads_nothing_is_cut_and_delays_nobody_for_long(
    rig: Rig, stub: health_pb2_grpc.HealthStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sidecar.net.health._LOOKS", 1)
    with socket.create_connection(("127.0.0.1", rig.server.port)) as deaf:
        deaf.sendall(DEAF_WATCH)
        until(lambda: rig.server._servicer.sending is not None)
        assert check(stub) == Status.NOT_SERVING
        rig.say(POD, True)
        assert check(stub) == Status.SERVING
        assert next(watch(stub)).status == Status.SERVING, "after the deaf one was cut"
        assert len(rig.server._servicer._watchers) <= 1


def test_drain_waits_for_nobody(rig: Rig) -> None:
    with socket.create_connection(("127.0.0.1", rig.server.port)) as deaf:
        deaf.sendall(DEAF_WATCH)
        until(lambda: rig.server._servicer.sending is not None)
        rig.server.drain()
