"""Every wait has an end: one row for each way to wait, with the key that bounds it and what the caller sees.

In each row that key alone is short. Nothing ends before its time; a quarter later everything has.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from sidecar.settings import Timeouts
from tests.harness.engine import SSE, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post
from tests.unit.sidecar.flow.tickets import ticket

LIMIT_S: Final = 8
LATE_S: Final = LIMIT_S / 4 + 0.75  # looked at every quarter; and the coarseness of the clock
UPLOAD: Final = get("/upload", "content-length: 6", method="POST")

# The ways to wait. Each leaves a client for whom nothing happens any more.


def silent(wire: Wire) -> Client:
    return wire.client()


def between_requests(wire: Wire) -> Client:
    client = wire.client() >> get()
    wire.engine >> ok()
    client.received()
    return client


def in_its_head(wire: Wire) -> Client:
    return wire.client() >> get()[:-2]


def in_a_held_body(wire: Wire) -> Client:
    return wire.client() >> post()[:-1]


def in_a_streamed_body(wire: Wire) -> Client:
    return wire.client() >> UPLOAD + b"abc"


def queued(wire: Wire) -> Client:
    busy = ticket(steady=False)
    wire.gate.arrive(busy, wire.clock.now())  # it has the only seat
    wire.timers.after(LIMIT_S + 0.9 * LATE_S, wire.gate.leave, busy)
    return wire.client() >> post()


def connecting(wire: Wire) -> Client:
    wire.dialer.unheard = True
    return wire.client() >> post()


def without_a_first_byte(wire: Wire) -> Client:
    return wire.client() >> post()


def with_half_a_head(wire: Wire) -> Client:
    client = wire.client() >> post()
    wire.engine >> SSE[:-2]
    return client


def with_a_body_nobody_takes(wire: Wire) -> Client:
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine.transport.congest()
    return client


def in_an_event_stream(wire: Wire) -> Client:
    client = wire.client() >> post()
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    return client


def in_any_other_answer(wire: Wire) -> Client:
    client = wire.client() >> get()
    wire.engine >> ok(b"hello")[:-1]
    return client


def unread(wire: Wire) -> Client:
    client = in_an_event_stream(wire)
    client.transport.congest()
    return client


class Row(NamedTuple):
    """`key` of `timeouts` ends it. A `status` of 0: no answer was begun, and none is given."""

    key: str
    wait: Callable[[Wire], Client]
    status: int
    reason: str
    stays_open: bool = False


BROKEN_OFF: Final = 200
TABLE: Final = [
    Row("connect_s", connecting, 502, "connect_failed", stays_open=True),
    Row("head_s", in_its_head, 408, "request_timeout"),
    Row("body_s", in_a_held_body, 408, "request_timeout"),
    Row("body_s", in_a_streamed_body, 408, "request_timeout"),
    Row("first_byte_s", without_a_first_byte, 504, "first_token_timeout", stays_open=True),
    Row("first_byte_s", with_half_a_head, 504, "first_token_timeout", stays_open=True),
    Row("first_byte_s", with_a_body_nobody_takes, 504, "first_token_timeout"),
    Row("stall_s", in_an_event_stream, BROKEN_OFF, "stalled"),
    Row("stall_s", in_any_other_answer, BROKEN_OFF, "stalled"),
    Row("stall_s", unread, BROKEN_OFF, "client_gone"),
    Row("keep_alive_s", silent, 0, ""),
    Row("keep_alive_s", between_requests, 0, ""),
    Row("request_s", in_a_held_body, 504, "timeout"),
    Row("request_s", in_a_streamed_body, 504, "timeout"),
    Row("request_s", queued, 504, "timeout", stays_open=True),
    Row("request_s", connecting, 504, "timeout", stays_open=True),
    Row("request_s", without_a_first_byte, 504, "timeout", stays_open=True),
    Row("request_s", with_half_a_head, 504, "timeout", stays_open=True),
    Row("request_s", in_an_event_stream, BROKEN_OFF, "timeout"),
    Row("request_s", in_any_other_answer, BROKEN_OFF, "timeout"),
    Row("request_s", unread, BROKEN_OFF, "timeout"),
]


def only(key: str) -> Wire:
    limits = {name: 80_000 for name in Timeouts.__struct_fields__ if name != "request_s"} | {key: LIMIT_S}
    settings = ", ".join(f"{name}: {limit}" for name, limit in limits.items())
    return Wire(f"admission: {{max_in_flight: 1, queue_timeout_s: 80000}}\ntimeouts: {{{settings}}}")


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.key}-{row.wait.__name__}")
def test_a_wait_ends_in_its_time_and_says_why(row: Row) -> None:
    wire = only(row.key)
    client = row.wait(wire)
    wire.advance(LIMIT_S - 0.25)
    assert client.is_open
    if row.status != BROKEN_OFF:
        client << b""
    wire.advance(0.25 + LATE_S)
    assert client.is_open is row.stays_open
    if client.transport.congested and not client.transport.lost:
        client.transport.decongest()  # the end of its answer is still on its way
        wire.settle()
    wire.assert_at_rest()
    if not row.status:
        client << b""
        assert client.transport.lost
        return
    answer = client.answer(b"POST")
    assert (answer.status, answer.complete) == (row.status, row.status != BROKEN_OFF)
    assert wire.record.reason == row.reason
    if row.status != BROKEN_OFF:
        assert (answer.reason, wire.record.status) == (row.reason, row.status)
    elif row.wait is in_an_event_stream:
        assert b'"code":"%b"' % row.reason.encode() in answer.body
    assert not any(engine.is_open for engine in wire.engines), "the engine works for nobody"


def test_an_idle_engine_connection_is_not_used_after_its_time() -> None:
    wire = only("engine_idle_s")
    client = between_requests(wire)
    wire.advance(LIMIT_S - 0.25)
    client >> get()
    wire.engine >> ok()
    assert len(wire.engines) == 1
    wire.advance(LIMIT_S)
    client >> get()
    assert [engine.is_open for engine in wire.engines] == [False, True]


def test_every_time_out_is_here() -> None:
    assert {row.key for row in TABLE} | {"engine_idle_s"} == set(Timeouts.__struct_fields__)


# The longest a request may last, beside what its caller says.


@pytest.mark.parametrize("said", ["x-request-timeout-ms: 4000", "x-stainless-read-timeout: 4"])
def test_of_two_deadlines_the_earlier_counts(said: str) -> None:
    for limit in (2, 8):
        wire = Wire(f"timeouts: {{request_s: {limit}}}")
        client = wire.client() >> post(CHAT, b"{}", said)
        wire.advance(min(limit, 4) - 0.25)
        client << b""
        wire.advance(0.5)
        assert client.answer(b"POST").reason == "timeout"


def test_a_word_on_the_first_byte_does_not_lengthen_the_whole() -> None:
    wire = Wire("timeouts: {request_s: 6}")
    client = wire.client() >> post(CHAT, b"{}", "x-stainless-read-timeout: 600")
    wire.advance(4)
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    wire.advance(1.75)
    assert client.is_open
    wire.advance(0.5)
    assert b'"code":"timeout"' in client.answer(b"POST").body
    assert wire.engine.aborted


def test_the_whole_begins_with_the_arrival_also_behind_another_request() -> None:
    wire = Wire("timeouts: {request_s: 6}")
    client = wire.client() >> get("/1")
    wire.advance(2)
    client >> post()
    wire.advance(2)
    wire.engine >> ok(b"1")
    assert client.answer().body == b"1"
    wire.advance(3.75)
    client << b""
    wire.advance(0.5)
    assert client.answer(b"POST").reason == "timeout"
