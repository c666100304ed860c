"""What begins while another ends, and what is turned away: nothing hangs, nothing goes unwritten."""

import tracemalloc

import pytest

from sidecar.exchange import Exchange
from sidecar.http1.request import MAX_WAITING, Request
from sidecar.stages.identify import Identify
from tests.harness.engine import End, ok
from tests.harness.wire import CHAT, Wire, get, post, post_chunked

BODY = b'{"model":"m"}'


def test_a_body_read_ahead_comes_in_whole_when_its_turn_follows_a_failure() -> None:
    wire = Wire()
    client = wire.client()
    request = post(CHAT, BODY * 10)
    client >> post(CHAT, BODY) >> request[:-60]
    wire.engine >> End.RESET
    assert client.answer().status == 502
    client >> request[-60:]
    wire.engine >> ok(b"whole")
    assert client.answer().body == b"whole"
    assert wire.engine.seen[-1].body == BODY * 10
    wire.assert_at_rest()


def test_a_long_body_read_ahead_of_a_slow_reader_comes_in_whole_once_it_reads() -> None:
    wire = Wire()
    client = wire.client()
    body = b'"' + b"x" * 200_000 + b'"'
    client >> get("/slow")
    client.transport.congest()
    client >> post(CHAT, body)[:-100_000]
    wire.engine >> ok(b"first")
    client.transport.decongest()
    client >> body[-100_000:]
    assert client.answer().body == b"first"
    wire.engine >> ok(b"second")
    assert client.answer().body == b"second"
    assert wire.engine.seen[-1].body == body
    wire.assert_at_rest()


def test_a_request_refused_before_its_turn_is_written_down() -> None:
    wire = Wire()
    client = wire.client()
    client >> post(CHAT, BODY) >> post_chunked(CHAT, b"{", last=False) >> b"no chunk\r\n"
    wire.engine >> End.RESET
    first, second = client.answer(), client.answer()
    assert (first.status, second.status, second.reason) == (502, 400, "malformed")
    assert second[b"x-request-id"]
    assert [record.reason for record in wire.receipts.last(2)] == ["malformed", "upstream_reset"]


def test_those_who_are_turned_away_keep_nobody_out() -> None:
    wire = Wire("max_connections: 1")
    first = wire.client()
    turned_away = wire.client()
    assert turned_away.answer().reason == "too_many_connections"
    first >> End.CLOSE
    third = wire.client()
    third >> get("/health")
    wire.engine >> ok(b"fine")
    assert third.answer().status == 200


def test_of_those_who_are_turned_away_many_are_cut_without_a_word() -> None:
    wire = Wire("max_connections: 1")
    wire.client()
    told = [wire.client() for _ in range(300)]
    assert sum(client.transport.aborted for client in told) == 300 - 256
    for client in told:
        if not client.transport.aborted:
            client >> End.CLOSE
    assert wire.context.turned_away == 0


def test_small_pieces_cost_little_more_than_their_bytes() -> None:
    request = Request(b"POST", b"/", "1.1")
    tracemalloc.start()
    for i in range(100_000):
        request.add(b"%02d" % (i % 100))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert request.received == 200_000
    assert size < 2 * request.received
    whole = request.take_body()
    assert whole == b"".join(b"%02d" % (i % 100) for i in range(100_000))
    assert request.take_body() == b""


@pytest.mark.parametrize("zeros", [18, 5000])
def test_a_length_with_too_many_digits_is_refused(zeros: int) -> None:
    wire = Wire()
    client = wire.client() >> get(CHAT, f"content-length: {'0' * zeros}2", method="POST") + b"{}"
    assert (client.answer().reason, wire.engines) == ("malformed", [])


def test_an_engines_length_with_too_many_digits_is_no_answer() -> None:
    wire = Wire()
    client = wire.client() >> get("/health")
    wire.engine >> b"HTTP/1.1 200 OK\r\ncontent-length: " + b"0" * 5000 + b"2\r\n\r\nok"
    assert client.answer().reason == "upstream_protocol"


def test_a_bug_on_the_body_costs_that_request_alone() -> None:
    wire = Wire()
    client = wire.client()
    client >> post(CHAT, BODY)[:-3]
    x = client.downstream._x
    assert isinstance(x, Exchange)

    def crash(x: Exchange) -> None:
        raise ZeroDivisionError

    x.when_body = crash
    with pytest.raises(AssertionError, match="a stage failed on the body"):  # the harness bears no errors
        client >> BODY[-3:]
    assert client.answer().reason == "internal"
    wire.assert_at_rest()


def test_a_rewritten_body_is_entered_anew_and_held_once() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, BODY)
    x = client.downstream._x
    assert isinstance(x, Exchange)
    x.upstream.abandon()  # type: ignore[union-attr]
    x.body = b'{"model":"another"}'
    at = [type(method.__self__) for method in x.pipeline._enter].index(Identify)  # type: ignore[attr-defined]
    x.pipeline.retry(x, at)
    wire.settle()
    wire.engine >> ok(b"from another")
    assert client.answer().body == b"from another"
    assert wire.engine.seen[-1].body == b'{"model":"another"}'
    wire.assert_at_rest()


def test_one_turn_is_for_so_many_requests_and_no_more() -> None:
    """Who pipelines what is refused at once must not keep the event loop from everybody else."""
    wire = Wire()
    client = wire.client() >> get("/sleep") * (MAX_WAITING * 3)
    assert client.received().count(b"x-headgate-reason: forbidden") == MAX_WAITING
    wire.advance(1)
    assert client.received().count(b"x-headgate-reason: forbidden") == MAX_WAITING * 2
    assert client.transport.reading
    wire.assert_at_rest()


@pytest.mark.parametrize("path", ["/tokenize", "/upload", CHAT])
def test_what_is_known_to_be_malformed_never_reaches_the_engine(path: str) -> None:
    wire = Wire()
    first = wire.client() >> get()
    wire.engine.request()
    wire.engine >> ok()
    assert first.answer().status == 200
    wire.engine.sent()
    client = wire.client() >> post_chunked(path, b"abc", last=False) + b"zz\r\n"
    assert client.answer(b"POST").reason == "malformed"
    assert wire.engine.sent() == b""
    assert not client.is_open
    wire.assert_at_rest()
