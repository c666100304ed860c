"""A client's connection: who does not read is not worked for, and who has left is missed."""

import pytest

from sidecar.http1.request import MAX_WAITING
from tests.harness.engine import SSE, End, chunked, ok
from tests.harness.wire import Client, Wire, get, post

UPLOAD = get("/upload", "content-length: 6", method="POST")
DENIED = get("/sleep")
ROOM = 1000


def unread(wire: Wire, *, room: float = ROOM) -> Client:
    """A client that takes `room` bytes and reads none of them."""
    client = wire.client()
    client.transport.room = room
    return client


def read(client: Client, wire: Wire) -> bytes:
    """The client reads what is there."""
    data = client.received()
    client.transport.decongest()
    wire.settle()
    return data


# Who does not read.


def test_refusals_do_not_pile_up_before_one_who_does_not_read() -> None:
    wire = Wire()
    client = unread(wire) >> DENIED * 500
    came, rounds = b"", 0
    while client.transport.congested:
        data = read(client, wire)
        assert len(data) < 2 * ROOM
        came += data
        rounds += 1
    came += client.received()
    assert came.count(b"x-headgate-reason: forbidden") == 500
    assert rounds > 100
    assert client.transport.reading
    wire.assert_at_rest()


def test_nothing_further_is_started_for_one_who_does_not_read() -> None:
    wire = Wire()
    client = unread(wire, room=0) >> get("/1") + get("/2") + get("/3")
    wire.engine >> ok(b"1")
    client >> get("/4")
    for i in (b"2", b"3", b"4"):
        wire.advance(1)
        assert len(wire.engines) == 1
        assert wire.engine.seen[-1].target != b"/" + i
        read(client, wire)
        assert wire.engine.seen[-1].target == b"/" + i
        wire.engine >> ok(i)


def test_what_one_who_does_not_read_asks_is_left_unread_too() -> None:
    wire = Wire()
    client = unread(wire, room=0) >> DENIED
    client >> DENIED * 17
    assert not client.transport.reading
    client >> DENIED
    assert len(client.downstream._reader.requests) == MAX_WAITING
    client.transport.room = 1e6
    read(client, wire)
    assert client.received().count(b"x-headgate-reason: forbidden") == 18
    assert client.transport.reading


def test_one_who_does_not_read_is_cut_and_not_taken_for_idle() -> None:
    wire = Wire("timeouts: {keep_alive_s: 5, head_s: 5, stall_s: 40}")
    client = unread(wire, room=0) >> DENIED * 2
    wire.advance(39)
    assert client.is_open
    read(client, wire)  # the second answer, which it does not read either
    wire.advance(39)
    assert client.is_open
    wire.advance(3)
    assert client.transport.aborted


@pytest.mark.parametrize("begun", [b"", get()[:-2]])
def test_the_wait_for_the_next_request_begins_once_it_has_read(begun: bytes) -> None:
    wire = Wire("timeouts: {keep_alive_s: 20, head_s: 20, stall_s: 100}")
    client = unread(wire, room=0) >> DENIED >> begun
    wire.advance(60)
    read(client, wire)
    wire.advance(18)
    assert client.is_open
    wire.advance(8)
    assert not client.is_open


# Who leaves while nobody reads from it. A reader would hear of the end behind the bytes; a poll does.


def parked(wire: Wire) -> Client:
    wire.client() >> post()
    client = wire.client() >> UPLOAD + b"abc"
    assert wire.gate.queued == 1
    return client


def not_taken(wire: Wire) -> Client:
    client = wire.client() >> UPLOAD + b"a"
    wire.engine.transport.congest()
    return client


def while_dialling(wire: Wire) -> Client:
    wire.dialer.held = True
    return wire.client() >> UPLOAD + b"a"


def too_far_ahead(wire: Wire) -> Client:
    return wire.client() >> get("/x") * 18


def too_much_ahead(wire: Wire) -> Client:
    return wire.client() >> get() + get("/upload", "content-length: 100000", method="POST") + b"x" * 70_000


def congested(wire: Wire) -> Client:
    return unread(wire, room=0) >> DENIED * 18


UNHEARD = [parked, not_taken, while_dialling, too_far_ahead, too_much_ahead, congested]


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("situation", UNHEARD)
def test_gone_while_nobody_reads(situation, end: End) -> None:  # type: ignore[no-untyped-def]
    wire = Wire("admission: {max_in_flight: 1, queue_timeout_s: 60}")
    client = situation(wire)
    assert not client.transport.reading
    wire.advance(5)
    assert client.is_open
    client >> b"more" >> end
    assert client.is_open
    wire.advance(0.5)  # a quarter of a second, and the coarseness of the clock
    assert client.transport.aborted
    assert client.downstream not in wire.context.clients
    assert wire.gate.queued == 0
    if situation is not congested:
        assert wire.record.reason == "client_gone"
    if situation is parked:
        wire.engine >> ok()
    elif situation not in (while_dialling, congested):
        assert wire.engine.aborted
    wire.assert_at_rest()
    wire.advance(1)
    assert not any(wire.timers._buckets.values()) or situation is parked


def test_nobody_looks_for_one_who_is_read_from() -> None:
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine.transport.congest()
    wire.engine.transport.decongest()
    looks = []
    wire.context.has_left = looks.append  # type: ignore[assignment]
    wire.advance(5)
    assert client.transport.reading
    assert looks == []


def test_one_look_at_a_time_however_often_reading_stops() -> None:
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    looks = []
    wire.context.has_left = lambda transport: looks.append(transport) or False  # type: ignore[func-returns-value]
    for _ in range(10):
        wire.engine.transport.congest()
        wire.engine.transport.decongest()
    wire.engine.transport.congest()
    wire.advance(2)
    assert 3 <= len(looks) <= 8
    assert client.is_open


# The last answer.


@pytest.mark.parametrize("behind", [get(), get()[:-2], get() * 20, b"nonsense\r\n\r\n"])
@pytest.mark.parametrize(
    "last", [get("/", "connection: close"), get("/", version="1.0"), get("/sleep", "connection: close")]
)
def test_the_last_answer_is_not_eaten_by_a_reset(last: bytes, behind: bytes) -> None:
    """What was pipelined behind it is read into nothing until the client has closed too."""
    wire = Wire()
    client = wire.client() >> last + behind
    if wire.engines:
        wire.engine >> ok(b"last")
    assert client.answer()[b"connection"] == b"close"
    assert client.transport.eof_written
    assert client.transport.reading
    assert not client.transport.closing
    client >> get() * 20
    client << b""
    client >> End.CLOSE
    assert client.transport.lost
    assert not client.transport.aborted


def test_half_a_request_behind_the_last_answer_of_a_drain_resets_nothing() -> None:
    wire = Wire()
    client = wire.client() >> get() + get()[:-2]
    wire.lifecycle.draining = True
    wire.engine >> ok()
    assert client.answer()[b"connection"] == b"close"
    assert client.transport.eof_written
    assert not client.transport.closing


def test_an_event_stream_that_is_cut_off_lets_its_end_be_read() -> None:
    wire = Wire()
    client = wire.client() >> post() + get()
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False) >> End.RESET
    assert b'"code":"upstream_reset"' in client.answer(b"POST").body
    assert client.transport.eof_written
    assert not client.transport.closing
