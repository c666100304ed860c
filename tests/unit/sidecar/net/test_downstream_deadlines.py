"""How long a caller waits is how long anybody works for it, wherever the request is by then."""

from collections.abc import Callable

import pytest

from tests.harness.engine import SSE, answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post

WHOLE = ["x-request-timeout-ms: 1500", "grpc-timeout: 1500m"]
FIRST = "x-stainless-read-timeout: 1.5"
DATA = SSE + chunked(b"data: 1\n\n", last=False)


def queued(wire: Wire, field: str) -> Client:
    wire.client() >> post()
    client = wire.client() >> post(CHAT, b"{}", field)
    assert wire.gate.queued == 1
    return client


def body_queued(wire: Wire, field: str) -> Client:
    wire.client() >> post()
    return wire.client() >> get("/upload", "content-length: 6", field, method="POST") + b"a"


def dialling(wire: Wire, field: str) -> Client:
    wire.dialer.held = True
    return wire.client() >> post(CHAT, b"{}", field)


def before_the_first_byte(wire: Wire, field: str) -> Client:
    return wire.client() >> post(CHAT, b"{}", field)


def in_the_head(wire: Wire, field: str) -> Client:
    client = wire.client() >> post(CHAT, b"{}", field)
    wire.engine >> b"HTTP/1.1 200 OK\r\n"
    return client


def after_an_interim(wire: Wire, field: str) -> Client:
    client = wire.client() >> post(CHAT, b"{}", field)
    wire.engine >> answer(b"102 P", b"")
    client.received()
    return client


def while_the_body_comes(wire: Wire, field: str) -> Client:
    return wire.client() >> post(CHAT, b"{}", field)[:-1]


def while_the_body_streams(wire: Wire, field: str) -> Client:
    return wire.client() >> get("/upload", "content-length: 6", field, method="POST") + b"a"


PLACES = [
    queued, body_queued, dialling, before_the_first_byte, in_the_head, after_an_interim, while_the_body_comes,
    while_the_body_streams,
]  # fmt: skip
UNFINISHED = [body_queued, while_the_body_comes, while_the_body_streams]


@pytest.mark.parametrize("field", [*WHOLE, FIRST])
@pytest.mark.parametrize("place", PLACES)
def test_before_the_first_byte_it_is_504(place: Callable[[Wire, str], Client], field: str) -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    client = place(wire, field)
    wire.advance(1.25)
    client << b""
    wire.advance(0.5)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (504, "timeout")
    assert client.is_open == (place not in UNFINISHED)
    assert wire.gate.queued == 0
    if place in (queued, body_queued):
        wire.engine >> ok()
    elif wire.engines:
        assert wire.engine.aborted
    wire.assert_at_rest()


def test_an_engine_that_is_reached_too_late_is_asked_nothing() -> None:
    wire = Wire()
    wire.dialer.held = True
    wire.client() >> post(CHAT, b"{}", WHOLE[0])
    wire.advance(2)
    wire.dialer.go_on()
    wire.engine << b""
    assert wire.engine.is_open


def test_what_waits_behind_another_request_has_its_deadline_too() -> None:
    """Pipelined: it began when it came, not when its turn did."""
    wire = Wire()
    client = wire.client() >> get("/1") + post(CHAT, b"{}", "x-request-timeout-ms: 3000")
    wire.advance(2)
    wire.engine >> ok(b"1")
    assert client.answer().body == b"1"
    wire.advance(0.75)
    client << b""
    wire.advance(0.5)
    assert client.answer(b"POST").reason == "timeout"
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_whose_deadline_passed_behind_another_request_is_not_begun() -> None:
    wire = Wire()
    client = wire.client() >> get("/1") + post(CHAT, b"{}", "x-request-timeout-ms: 3000")
    wire.advance(4)
    wire.engine >> ok(b"1")
    assert client.answer().body == b"1"
    assert client.answer(b"POST").reason == "timeout"
    assert [seen.target for seen in wire.engine.seen] == [b"/1"]


@pytest.mark.parametrize("field", WHOLE)
def test_the_whole_deadline_ends_an_event_stream_with_an_error(field: str) -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", field)
    wire.engine >> DATA
    wire.advance(1.25)
    assert wire.engine.is_open
    wire.advance(0.5)
    _, _, body = client.received().partition(b"\r\n\r\n")
    assert body.startswith(chunked(b"data: 1\n\n", last=False))
    assert body.endswith(b'"code":"timeout"}}\n\n\r\n')
    assert not client.is_open
    assert wire.engine.aborted
    assert (wire.record.status, wire.record.reason) == (200, "timeout")
    wire.assert_at_rest()


def test_the_whole_deadline_cuts_any_other_answer_short() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", WHOLE[0])
    wire.engine >> ok(b"hello")[:-1]
    wire.advance(2)
    cut = client.answer(b"POST")
    assert (cut.body, cut.complete) == (b"hell", False)
    assert not client.is_open
    assert wire.engine.aborted


def test_a_deadline_for_the_next_byte_is_kept_by_the_first() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", FIRST)
    wire.engine >> SSE
    wire.advance(20)
    wire.engine >> chunked(b"late")
    late = client.answer(b"POST")
    assert (late.body, late.complete) == (b"late", True)


def test_both_deadlines_each_for_its_part() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", FIRST, "x-request-timeout-ms: 6000")
    wire.advance(1)
    wire.engine >> DATA
    wire.advance(4.75)
    assert wire.engine.is_open
    wire.advance(0.5)
    assert wire.engine.aborted
    assert b'"code":"timeout"' in client.answer(b"POST").body


def test_an_answer_in_time_leaves_no_alarm_behind() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", WHOLE[0])
    wire.engine >> DATA
    wire.engine >> chunked(b"x")
    assert client.answer(b"POST").complete
    client >> get()
    wire.advance(5)
    wire.engine >> ok(b"next")
    assert client.answer().body == b"next"


def test_a_deadline_is_kept_over_a_reload() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", WHOLE[0])
    wire.configure("unknown_keys: reject")
    wire.advance(2)
    assert client.answer(b"POST").reason == "timeout"
    wire.assert_at_rest()


def test_the_queues_own_limit_is_not_the_callers_deadline() -> None:
    wire = Wire("admission: {max_in_flight: 1, queue_timeout_s: 1}")
    client = queued(wire, WHOLE[0])
    wire.advance(1.25)
    assert client.answer(b"POST").reason == "queue_timeout"


@pytest.mark.parametrize(("peer", "passed"), [("10.0.0.1", True), ("192.0.2.7", False)])
def test_a_proxys_word_on_when_it_began_counts_from_a_proxy_alone(peer: str, passed: bool) -> None:
    wire = Wire("trusted_proxies: [10.0.0.0/8]")
    started = f"x-request-start: t={wire.clock.wall() - 1:.3f}"
    client = wire.client(peer) >> post(CHAT, b"{}", WHOLE[0], started)
    wire.advance(1)
    assert (client.received() != b"") is passed
