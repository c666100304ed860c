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


def test_a_body_that_keeps_coming_may_take_long() -> None:
    wire = Wire("timeouts: {body_s: 5}")
    client = wire.client() >> UPLOAD
    for _ in range(5):
        wire.advance(4)
        client >> b"x"
    client << b""
    assert wire.engine.request().body == b"xxxxx"


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
