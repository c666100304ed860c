"""What clients do not read takes memory: it counts, it is given back, and there is an end to it."""

from collections.abc import Callable

import pytest

from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post

TIGHT = "max_buffered_bytes: 4000\nmax_body_bytes: 2000"  # so that 2000 may lie unread
LATE_S = 1.5
UNTIL_CLOSE = answer(b"200 OK", b"")


def unread(wire: Wire, size: int) -> Client:
    """A client in the middle of an answer, of which it does not take `size` bytes."""
    client = wire.client() >> get("/large")
    wire.engine >> answer(b"200 OK", b"", b"content-length: 10000")
    client.received()
    client.transport.slow = True
    wire.engine >> b"x" * size
    return client


def test_what_is_unread_counts_until_it_is_read() -> None:
    wire = Wire(TIGHT)
    client = unread(wire, 1000)
    assert wire.plane.bodies.held == 1000
    assert not wire.engine.transport.reading
    client.received()
    client.transport.decongest()
    assert wire.plane.bodies.held == 0
    assert wire.engine.transport.reading
    wire.engine >> b"x" * 9000
    client >> End.CLOSE
    wire.assert_at_rest()


def left(wire: Wire, client: Client) -> None:
    client >> End.CLOSE


def broke(wire: Wire, client: Client) -> None:
    client >> End.RESET


def stalled(wire: Wire, client: Client) -> None:
    wire.advance(400)


def out_of_time(wire: Wire, client: Client) -> None:
    wire.advance(70)
    client.transport.decongest()
    wire.settle()


def engine_left(wire: Wire, client: Client) -> None:
    wire.engine.transport.resume_reading()  # what comes after a pause, in the same turn
    wire.engine >> End.RESET
    client.transport.decongest()
    wire.settle()


def drained(wire: Wire, client: Client) -> None:
    client.downstream.close()
    client.downstream.abort()
    wire.settle()


@pytest.mark.parametrize("end", [left, broke, stalled, out_of_time, engine_left, drained])
def test_it_is_given_back_however_it_ends(end: Callable[[Wire, Client], None]) -> None:
    wire = Wire(f"{TIGHT}\ntimeouts: {{request_s: 60, stall_s: 300}}" if end is out_of_time else TIGHT)
    client = unread(wire, 1000)
    end(wire, client)
    assert client.transport.lost
    wire.assert_at_rest()


def test_where_there_is_no_room_the_one_who_does_not_read_is_cut() -> None:
    wire = Wire(TIGHT)
    first, second = unread(wire, 1500), unread(wire, 400)
    waits = wire.client() >> get("/x")
    third = unread(wire, 200)
    assert third.is_open
    wire.advance(LATE_S)
    assert third.was_reset
    assert wire.engines[3].aborted
    assert (wire.record.status, wire.record.reason) == (200, "overloaded")
    assert len(wire.receipts.last(10)) == 1
    assert wire.plane.bodies.held == 1900
    assert first.is_open
    assert second.is_open
    wire.engines[2] >> ok(b"served")
    assert waits.answer().body == b"served"
    for client in (first, second):
        client >> End.RESET
    wire.assert_at_rest()


def test_who_reads_again_in_time_is_not_cut_for_those_who_do_not() -> None:
    wire = Wire(TIGHT)
    unread(wire, 2000)
    reader = unread(wire, 500)
    wire.advance(0.5)
    reader.received()
    reader.transport.decongest()
    reader.transport.slow = True
    wire.engine >> b"y" * 500  # congested anew, and again for a moment
    wire.advance(0.7)
    assert reader.is_open
    reader.transport.decongest()
    wire.engine >> b"z" * 9000
    wire.advance(LATE_S)
    assert reader.is_open
    assert len(reader.received()) == 9500


def test_room_that_was_found_meanwhile_is_taken() -> None:
    wire = Wire(TIGHT)
    first = unread(wire, 2000)
    second = unread(wire, 500)
    first >> End.RESET
    wire.advance(LATE_S)
    assert second.is_open
    assert wire.plane.bodies.held == 500


def test_they_leave_half_of_the_room_to_requests() -> None:
    wire = Wire(TIGHT)
    unread(wire, 2000)
    client = wire.client() >> post(CHAT, b"x" * 2000)
    wire.engine >> ok(b"served")
    assert client.answer(b"POST").body == b"served"


def test_requests_come_first_and_what_is_unread_has_the_rest() -> None:
    wire = Wire(TIGHT)
    held = [wire.client() >> post(CHAT, b"x" * 900) for _ in range(2)]
    engines = list(wire.engines)
    greedy, modest = unread(wire, 500), unread(wire, 100)
    wire.advance(LATE_S)
    assert greedy.was_reset
    assert not modest.was_reset
    for client, engine in zip(held, engines, strict=True):
        engine >> ok()
        assert client.answer(b"POST").status == 200


@pytest.mark.parametrize(("last", "reason"), [(b"", "overloaded"), (b"0\r\n\r\n", "")])
def test_it_is_cut_though_the_answer_ends_with_the_same_piece(last: bytes, reason: str) -> None:
    wire = Wire(TIGHT)
    client = wire.client() >> post()
    wire.engine >> SSE
    client.transport.slow = True
    wire.engine >> chunked(b"x" * 3000, last=False) + last
    wire.advance(LATE_S)
    assert client.was_reset
    assert (wire.record.status, wire.record.reason) == (200, reason)
    assert len(wire.receipts.last(10)) == 1
    wire.assert_at_rest()


def test_it_is_cut_though_nothing_is_under_way() -> None:
    wire = Wire(TIGHT)
    client = wire.client() >> get()
    wire.engine >> ok(b"x" * 3000)
    client.transport.congest()
    wire.advance(LATE_S)
    assert client.was_reset
    assert (wire.record.status, wire.record.reason) == (200, "")
    wire.assert_at_rest()


def test_it_is_cut_before_the_head_of_its_answer() -> None:
    wire = Wire(TIGHT)
    client = wire.client() >> get()
    client.transport.slow = True
    wire.engine >> answer(b"103 Early", b"", b"link: " + b"x" * 3000)
    wire.advance(LATE_S)
    assert client.was_reset
    assert (wire.record.status, wire.record.reason) == (503, "overloaded")
    wire.assert_at_rest()


def test_a_refusal_that_is_not_read_is_cut_too() -> None:
    wire = Wire("max_buffered_bytes: 1024\nmax_body_bytes: 1024")
    client = wire.client()
    client.transport.room = 400
    client >> get("/sleep") * 10
    wire.advance(LATE_S)
    assert client.was_reset
    wire.assert_at_rest()


# Cut short, it must not look whole: where the connection's end is the answer's, the end is a reset.


@pytest.mark.parametrize("config", ["timeouts: {stall_s: 20}", TIGHT])
def test_an_answer_that_ends_with_the_connection_is_reset(config: str) -> None:
    wire = Wire(config)
    client = wire.client() >> get("/", version="1.0")
    wire.engine >> UNTIL_CLOSE
    client.transport.slow = True
    wire.engine >> b"x" * 3000
    wire.advance(30)
    assert client.was_reset
    wire.assert_at_rest()


def test_the_last_of_it_too() -> None:
    """The engine is through, the client is not."""
    wire = Wire("timeouts: {stall_s: 20}")
    client = wire.client() >> get("/", version="1.0")
    client.transport.slow = True
    wire.engine >> ok(b"x" * 3000)
    assert wire.record.reason == ""
    assert not client.transport.lost
    wire.advance(30)
    assert client.was_reset
    wire.assert_at_rest()


def test_who_has_read_everything_is_not_reset() -> None:
    wire = Wire("timeouts: {keep_alive_s: 5}")
    client = wire.client() >> get()
    wire.engine >> ok()
    client.downstream.abort()
    wire.settle()
    assert client.transport.aborted
    assert not client.was_reset
