"""A client's connection: who is slowed down by whom, who learns of a farewell, and how it ends."""

import pytest

from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post, post_chunked

UPLOAD = get("/upload", "content-length: 6", method="POST")
SEGMENT = b"x" * 65536


# Client gone.


@pytest.mark.parametrize("end", End)
def test_gone_while_its_body_comes(end: End) -> None:
    wire = Wire()
    wire.client() >> post()[:-1] >> end
    assert wire.engines == []
    assert (wire.record.status, wire.record.reason) == (499, "client_gone")
    wire.assert_at_rest()


@pytest.mark.parametrize("end", End)
def test_gone_while_queued(end: End) -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    first = wire.client() >> post()
    second = wire.client() >> post()
    assert wire.gate.queued == 1
    second >> end
    assert wire.gate.queued == 0
    assert wire.record.reason == "client_gone"
    wire.engine >> ok()
    assert first.answer().status == 200
    assert len(wire.engines) == 1
    wire.assert_at_rest()


@pytest.mark.parametrize("end", End)
def test_gone_while_connecting(end: End) -> None:
    wire = Wire()
    wire.dialer.held = True
    wire.client() >> post() >> end
    wire.assert_at_rest()
    wire.dialer.go_on()
    wire.engine << b""  # the connection is kept for the next one
    wire.client() >> get("/next")
    assert len(wire.engines) == 1
    assert wire.engine.request().target == b"/next"


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("so_far", [b"", b"HTTP/1.1 200 OK\r\n", SSE, SSE + chunked(b"a", last=False)])
def test_gone_while_the_engine_works(end: End, so_far: bytes) -> None:
    wire = Wire()
    client = wire.client() >> post()
    wire.engine >> so_far
    client >> end
    assert wire.engine.aborted
    assert (wire.record.status, wire.record.reason) == (499, "client_gone")
    wire.assert_at_rest()


def test_a_farewell_does_not_wait_for_what_is_unsent() -> None:
    wire = Wire()
    client = wire.client() >> post()
    wire.engine >> SSE + chunked(b"a", last=False)
    client.transport.congest()
    client >> End.CLOSE
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_gone_with_requests_waiting_behind() -> None:
    wire = Wire()
    wire.client() >> get("/1") + get("/2") >> End.RESET
    assert [seen.target for seen in wire.engine.seen] in ([], [b"/1"])
    wire.engine.read()
    assert len(wire.engines) == len(wire.engine.seen) == 1
    wire.assert_at_rest()


def test_a_farewell_between_requests_is_nobodys_loss() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok()
    client >> End.CLOSE
    assert client.transport.lost
    assert not client.transport.aborted
    assert wire.engine.is_open


# Back-pressure.


def test_a_slow_client_slows_the_engine() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> SSE + chunked(b"a", last=False)
    client.transport.congest()
    assert not wire.engine.transport.reading
    wire.engine >> chunked(b"b")
    assert client.answer().body == b"a"
    client.transport.decongest()
    wire.settle()
    assert wire.engine.transport.reading
    client << chunked(b"b")


def test_a_client_that_was_slow_before_the_engine_was_asked_slows_it_too() -> None:
    wire = Wire()
    wire.dialer.held = True
    client = wire.client() >> get()
    client.transport.congest()
    wire.dialer.go_on()
    assert not wire.engine.transport.reading
    client.transport.decongest()
    assert wire.engine.transport.reading


def test_a_slow_engine_slows_the_client() -> None:
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine.transport.congest()
    assert not client.transport.reading
    client >> b"def"
    assert wire.engine.request().body == b"abc"
    wire.engine.transport.decongest()
    wire.settle()
    wire.engine.read()
    assert wire.engine.seen[0].body == b"abcdef"
    assert wire.engine.seen[0].complete


def test_who_has_sent_all_is_not_slowed_down_for_the_engine() -> None:
    """Reading on is how we learn that the client has gone."""
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine.transport.slow = True
    client >> b"def"
    assert wire.engine.transport.congested
    assert client.transport.reading


def test_a_body_waits_with_its_sender_until_there_is_an_engine() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    wire.client() >> post()
    client = wire.client() >> UPLOAD + b"abc"
    assert not client.transport.reading
    wire.dialer.held = True
    wire.engine >> answer(b"200 OK", b"", b"content-length: 0", b"connection: close")
    assert not client.transport.reading
    wire.dialer.go_on()
    assert client.transport.reading
    client >> b"def"
    assert wire.engine.request().body == b"abcdef"


def test_an_engine_that_is_slow_from_the_first_piece_slows_the_client() -> None:
    wire = Wire()
    wire.dialer.held = True
    client = wire.client() >> UPLOAD + b"abc"
    wire.dialer.slow = True
    wire.dialer.go_on()
    assert not client.transport.reading


def test_pipelining_has_a_limit() -> None:
    wire = Wire()
    client = wire.client() >> get("/x") * 17
    assert client.transport.reading
    client >> get("/x")
    assert not client.transport.reading
    wire.script = lambda seen: [ok()]
    wire.settle()
    assert client.transport.reading
    assert client.received().count(b"HTTP/1.1 200 OK") == 18


def test_the_limit_holds_when_the_engine_is_only_just_connected() -> None:
    wire = Wire()
    wire.dialer.held = True
    client = wire.client() >> get("/x") * 18
    wire.dialer.go_on()
    assert not client.transport.reading


def test_a_body_behind_a_running_request_is_not_read_without_end() -> None:
    wire = Wire()
    client = wire.client() >> get() + get("/upload", "content-length: 10000000", method="POST")
    for _ in range(10):
        client >> SEGMENT
    assert not client.transport.reading
    assert sum(len(piece) for request in client.downstream._reader.requests for piece in request.chunks) < 4e5
    wire.engine >> ok()
    assert client.transport.reading
    wire.engine.read()
    assert len(wire.engine.seen[-1].body) == 10 * len(SEGMENT)


def test_buffered_bodies_have_a_common_limit() -> None:
    wire = Wire("max_body_bytes: 65536\nmax_buffered_bytes: 65536")
    first = wire.client() >> post(CHAT, b"x" * 40000)[:-1]
    second = wire.client() >> post(CHAT, b"x" * 40000)[:-1]
    refusal = second.answer(b"POST")
    assert (refusal.status, refusal.reason) == (503, "overloaded")
    assert refusal[b"x-headgate-elsewhere"] == b"1"
    assert refusal[b"retry-after-ms"] == b"1200"
    first >> b"x"
    wire.engine >> ok()
    assert first.answer().status == 200
    wire.assert_at_rest()


# Bytes that are no request, behind one that is.


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_a_body_that_turns_out_malformed_is_refused_at_once(path: str) -> None:
    wire = Wire()
    client = wire.client() >> post_chunked(path, b"{", last=False) >> b"zz\r\n"
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (400, "malformed")
    assert not client.is_open
    assert all(engine.aborted for engine in wire.engines)
    wire.assert_at_rest()


def test_what_is_malformed_waits_for_the_answer_before_it() -> None:
    wire = Wire()
    client = wire.client() >> get() + post_chunked(CHAT, b"{", last=False) + b"zz\r\n"
    client << b""
    wire.engine >> ok()
    assert client.answer().status == 200
    assert client.answer(b"POST").reason == "malformed"
    assert not client.is_open


def test_nothing_is_read_after_a_refusal_that_closes() -> None:
    wire = Wire()
    client = wire.client() >> b"nonsense\r\n\r\n" + get()
    assert client.answer().reason == "malformed"
    client >> get()
    client << b""
    assert wire.engines == []


# Ends.


def test_a_refusal_is_not_eaten_by_a_reset() -> None:
    """Closing with input unread would reset the connection: we close our side and read on."""
    wire = Wire()
    client = wire.client() >> get("/sleep", "content-length: 100000", method="POST")
    assert client.answer().reason == "forbidden"
    assert client.transport.eof_written
    assert client.transport.reading
    assert not client.transport.closing
    client >> SEGMENT
    wire.advance(1.75)
    assert not client.transport.closing
    wire.advance(0.5)
    assert client.transport.aborted


def test_the_end_of_lingering_is_the_clients_to_choose() -> None:
    wire = Wire()
    client = wire.client() >> b"nonsense\r\n\r\n" >> End.CLOSE
    assert client.transport.lost
    assert not client.transport.aborted


def test_a_whole_request_needs_no_lingering() -> None:
    wire = Wire()
    client = wire.client() >> get("/", "connection: close")
    wire.engine >> ok()
    assert client.transport.closing
    assert client.answer()[b"connection"] == b"close"


def test_a_client_that_does_not_take_its_last_answer_is_cut() -> None:
    wire = Wire("timeouts: {stall_s: 20}")
    client = wire.client() >> get("/", "connection: close")
    client.transport.slow = True
    wire.engine >> ok(b"a")
    assert client.transport.closing
    assert not client.transport.lost
    wire.advance(21)
    assert client.transport.lost


def test_an_answer_that_begins_before_the_request_ends() -> None:
    wire = Wire()
    client = wire.client() >> post_chunked("/echo", b"abc", last=False)
    wire.engine >> SSE + chunked(b"abc", last=False)
    client >> chunked(b"def")
    seen = wire.engine.request()
    assert seen.complete
    assert seen.body == b"abcdef"
    wire.engine >> chunked(b"def")
    echo = client.answer(b"POST")
    assert echo.body == b"abcdef"
    assert echo.complete
    assert not client.is_open


def test_an_answer_that_ends_before_the_request_ends_the_connection() -> None:
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine >> ok(b"enough")
    early = client.answer(b"POST")
    assert (early.body, early[b"connection"]) == (b"enough", b"close")
    assert not wire.engine.is_open
    assert client.transport.eof_written


# Limits and draining.


def test_too_many_connections() -> None:
    wire = Wire("max_connections: 2")
    first, second, third = (wire.client() for _ in range(3))
    refusal = third.answer()
    assert (refusal.status, refusal.reason) == (503, "too_many_connections")
    assert refusal[b"connection"] == b"close"
    assert int(refusal[b"retry-after"]) >= 1
    assert third.transport.eof_written  # lingering: the request that is on its way must not reset the answer
    second >> End.CLOSE
    third >> End.CLOSE
    assert wire.client().is_open
    assert first.is_open


def test_draining_refuses_and_closes() -> None:
    wire = Wire()
    before, after = wire.client() >> post(), wire.client()
    wire.lifecycle.draining = True
    after >> post()
    refusal = after.answer(b"POST")
    assert (refusal.status, refusal.reason, refusal[b"connection"]) == (503, "draining", b"close")
    assert refusal[b"x-headgate-elsewhere"] == b"1"
    wire.engine >> ok()
    last = before.answer(b"POST")
    assert (last.status, last[b"connection"]) == (200, b"close")
    assert not before.is_open
    wire.assert_at_rest()


def close(client: Client, wire: Wire) -> None:
    client.downstream.close()
    wire.settle()


def test_closing_an_idle_connection() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok()
    client.answer()
    close(client, wire)
    assert client.transport.closing
    assert not client.transport.aborted
    close(client, wire)
    client << b""


def test_closing_breaks_off_what_runs() -> None:
    wire = Wire()
    waiting, streaming = wire.client() >> post(), wire.client() >> post()
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    for client in (waiting, streaming):
        close(client, wire)
    assert waiting.answer(b"POST").reason == "draining"
    cut = streaming.answer(b"POST")
    assert not cut.complete
    assert b'"code":"draining"' in cut.body
    assert all(engine.aborted for engine in wire.engines)
    wire.assert_at_rest()


def test_a_reload_leaves_running_exchanges_as_they_are() -> None:
    wire = Wire("admission: {max_in_flight: 1}")
    clients = [wire.client() >> post() for _ in range(3)]
    old = wire.context.pipeline
    wire.configure("admission: {max_in_flight: 1}\nunknown_keys: reject")
    late = wire.client() >> post()
    assert late.answer(b"POST").reason == "unauthenticated"
    assert wire.context.pipeline is not old
    wire.configure("admission: {max_in_flight: 2}")
    assert wire.gate.queued == 1  # the higher limit let one in
    fourth = wire.client() >> post()  # and a new one does not overtake
    assert wire.gate.queued == 2
    wire.script = lambda seen: [ok(b"done")]
    wire.settle()
    for client in (*clients, fourth):
        assert client.answer(b"POST").body == b"done"
    wire.assert_at_rest()
