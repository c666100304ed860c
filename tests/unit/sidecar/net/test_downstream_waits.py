"""A client's connection: when each wait for the client begins, and that it ends."""

import pytest

from tests.harness.engine import SSE, chunked, ok
from tests.harness.wire import CHAT, Wire, get, post

UPLOAD = get("/upload", "content-length: 6", method="POST")


def test_a_connection_that_says_nothing_is_closed() -> None:
    wire = Wire("timeouts: {keep_alive_s: 20}")
    client = wire.client()
    for _ in range(4):
        assert client.is_open
        wire.advance(4.75)
        client >> b"\r\n"  # says nothing either
    assert client.is_open
    wire.advance(11)
    assert not client.is_open
    client << b""


def test_the_time_between_requests_begins_when_the_answer_is_out() -> None:
    wire = Wire("timeouts: {keep_alive_s: 20}")
    client = wire.client() >> get()
    wire.advance(300)
    wire.engine >> ok()
    wire.advance(19)
    assert client.is_open
    wire.advance(12)
    assert not client.is_open


def test_an_idle_client_that_never_read_its_answer_is_cut() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok(b"x")
    client.transport.congest()
    wire.advance(400)
    assert client.transport.lost


def test_a_head_that_does_not_end_is_408() -> None:
    wire = Wire()
    client = wire.client() >> get()[:-2]
    for _ in range(15):
        wire.advance(0.5)
        client >> b"a: b\r\n"
    client << b""
    wire.advance(15)
    refusal = client.answer()
    assert (refusal.status, refusal.reason, refusal[b"connection"]) == (408, "request_timeout", b"close")
    assert not client.is_open
    assert wire.engines == []


def test_the_time_for_a_head_begins_when_its_turn_comes() -> None:
    wire = Wire()
    client = wire.client() >> get("/1") + get("/2")[:-2]
    wire.advance(100)
    wire.engine >> ok()
    assert client.answer().status == 200
    wire.advance(9)
    client << b""
    client >> b"\r\n"
    wire.engine >> ok()
    assert client.answer().status == 200


@pytest.mark.parametrize(("request_", "sent"), [(post()[:-1], False), (UPLOAD + b"a", True)])
def test_a_body_that_stops_coming_is_408(request_: bytes, sent: bool) -> None:
    wire = Wire("timeouts: {body_s: 5}")
    client = wire.client() >> request_
    wire.advance(4)
    client << b""
    wire.advance(7)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (408, "request_timeout")
    assert not client.is_open
    assert [engine.aborted for engine in wire.engines] == [True] * sent
    wire.assert_at_rest()


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_a_body_that_keeps_coming_may_take_long(path: str) -> None:
    """16 KiB in each body_s, and less only at its end."""
    wire = Wire("timeouts: {body_s: 4}")
    size = 40 * 4096 + 1
    client = wire.client() >> get(path, f"content-length: {size}", method="POST")
    for _ in range(40):
        wire.advance(1)
        client >> b"x" * 4096
    wire.advance(3)
    client << b""
    client >> b"x"
    assert len(wire.engine.request().body) == size


@pytest.mark.parametrize("path", [CHAT, "/upload"])
@pytest.mark.parametrize("piece", [1, 2048])
def test_a_body_that_drips_is_408(path: str, piece: int) -> None:
    wire = Wire("timeouts: {body_s: 4}")
    client = wire.client() >> get(path, "content-length: 65536", method="POST")
    for _ in range(4):
        wire.advance(1)
        client >> b"x" * piece
    client << b""
    wire.advance(1)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason, refusal[b"connection"]) == (408, "request_timeout", b"close")
    wire.assert_at_rest()


def test_a_body_that_came_fast_and_then_drips_is_408_too() -> None:
    wire = Wire("timeouts: {body_s: 4}")
    client = wire.client() >> get(CHAT, "content-length: 1000000", method="POST") + b"x" * 900_000
    for _ in range(11):
        wire.advance(1)
        client >> b"x"
    assert client.answer(b"POST").reason == "request_timeout"
    wire.assert_at_rest()


def test_the_time_for_a_body_does_not_count_how_long_its_head_took() -> None:
    wire = Wire("timeouts: {body_s: 4, head_s: 60}")
    head = get(CHAT, "content-length: 2", method="POST")
    client = wire.client() >> head[:-2]
    wire.advance(30)
    client >> head[-2:]
    wire.advance(3.5)
    client << b""
    client >> b"{}"
    assert wire.engine.request().body == b"{}"


FAR = "head_s: 80000, body_s: 80000, keep_alive_s: 80000, stall_s: 80000, first_byte_s: 80000"


@pytest.mark.parametrize("phase", [0.0, 0.75, 1.5])
@pytest.mark.parametrize("name", ["head_s", "body_s", "keep_alive_s", "stall_s"])
def test_a_time_out_comes_at_most_a_quarter_late(name: str, phase: float) -> None:
    wire = Wire("timeouts: {" + FAR.replace(f"{name}: 80000", f"{name}: 8") + "}")
    client = wire.client()
    wire.advance(phase)
    if name == "head_s":
        client >> get()[:-2]
    elif name == "body_s":
        client >> post()[:-1]
    elif name == "stall_s":
        client >> get()
        client.transport.congest()
    until = 8 - phase if name == "keep_alive_s" else 8
    wire.advance(until - 0.25)
    assert client.is_open
    client << b""
    wire.advance(2.5)  # a quarter, and the coarseness of the clock
    assert not client.is_open


# A reload.


def test_an_exchange_keeps_the_time_outs_it_began_with() -> None:
    wire = Wire("timeouts: {body_s: 8, stall_s: 8}")
    slow, stuck = wire.client() >> post()[:-1], wire.client() >> get()
    stuck.transport.congest()
    wire.configure("timeouts: {body_s: 1, stall_s: 1}")
    wire.advance(6)
    assert slow.is_open
    assert stuck.is_open
    wire.configure("timeouts: {body_s: 1000, stall_s: 1000, head_s: 1000, keep_alive_s: 1000}")
    wire.advance(4.5)
    assert slow.answer(b"POST").reason == "request_timeout"
    assert stuck.transport.aborted
    wire.assert_at_rest()


def test_the_next_exchange_has_the_new_time_outs() -> None:
    wire = Wire("timeouts: {body_s: 100}")
    client = wire.client() >> get()
    wire.configure("timeouts: {body_s: 4}")
    wire.engine >> ok()
    client.answer()
    client >> post()[:-1]
    wire.advance(5.5)
    assert client.answer(b"POST").reason == "request_timeout"


def test_the_time_in_which_we_do_not_read_is_not_the_clients() -> None:
    wire = Wire("timeouts: {body_s: 5, head_s: 1}")
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine.transport.congest()
    wire.advance(100)
    wire.engine.transport.decongest()
    wire.advance(4)
    client << b""


def test_the_time_for_a_body_begins_when_it_is_asked_for() -> None:
    wire = Wire("timeouts: {body_s: 5, head_s: 1}")
    asking = get(CHAT, "expect: 100-continue", "content-length: 2", method="POST")
    client = wire.client() >> get("/1") + asking
    wire.advance(100)
    wire.engine >> ok()
    assert client.answer().status == 200
    wire.advance(4)
    client << b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("fields", [(), ("connection: close",)])
def test_a_client_that_does_not_read_its_answer_is_cut(fields: tuple[str, ...]) -> None:
    wire = Wire("timeouts: {stall_s: 20}")
    client = wire.client() >> get("/", *fields)
    wire.engine >> SSE + chunked(b"a", last=False)
    client.transport.congest()
    wire.advance(19)
    assert wire.engine.is_open
    wire.advance(12)
    assert client.transport.aborted
    assert wire.engine.aborted
    wire.assert_at_rest()
