"""Connections on both sides: who waits for whom, what ends them, and what an end means.

What rule_NN says is in `test_http1_rules`.
"""

import pytest

from sidecar.net.downstream import LINGER_S
from tests.conformance.messages import CHUNKED
from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import CHAT, Wire, get, post, post_chunked

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
UPLOAD = get("/upload", "content-length: 6", method="POST")


# Expect.


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_rule_08_100_continue_is_answered_here(path: str) -> None:
    wire = Wire()
    client = wire.client() >> get(path, "Expect: 100-Continue", "content-length: 2", method="POST")
    client << CONTINUE
    client >> b"{}"
    seen = wire.engine.request()
    assert seen.body == b"{}"
    assert b"expect" not in seen
    wire.engine >> answer(b"100 Continue", b"") + ok()
    back = client.answer(b"POST")
    assert (back.status, back.interim) == (200, [])


@pytest.mark.parametrize(
    "sent",
    [
        get("/", "expect: 100-continue"),
        get("/", "expect: 100-continue", "content-length: 0", method="POST"),
        post("/", b"{}", "expect: 100-continue"),
        post("/", b"{}", "expect: 100-continue", version="1.0"),
    ],
)
def test_rule_08_no_100_where_it_is_not_waited_for(sent: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent
    client << b""
    assert b"expect" not in wire.engine.request()


@pytest.mark.parametrize("path", [CHAT, "/upload"])
@pytest.mark.parametrize(("version", "first"), [("1.1", b"{"), ("1.0", b"")])
def test_rule_08_no_100_to_who_does_not_wait(path: str, version: str, first: bytes) -> None:
    """A body that has begun needs none, and HTTP/1.0 knows of none (RFC 9110 section 10.1.1)."""
    wire = Wire()
    asking = get(path, "expect: 100-continue", "content-length: 2", method="POST", version=version)
    client = wire.client() >> asking + first >> b"{}"[len(first) :]
    client << b""
    assert wire.engine.request().body == b"{}"


@pytest.mark.parametrize("refused", ["/sleep", CHAT])
def test_rule_08_no_100_for_who_is_turned_away(refused: str) -> None:
    """Whether the body still comes is unknown, so the connection cannot be used again."""
    wire = Wire("unknown_keys: reject")
    client = wire.client() >> get(refused, "expect: 100-continue", "content-length: 2", method="POST")
    back = client.answer(b"POST")
    assert (back.status in (401, 403), back.interim, back[b"connection"]) == (True, [], b"close")
    assert not client.is_open


# Persistence and order.


def test_rule_24_answers_come_in_the_order_of_their_requests() -> None:
    wire = Wire()
    client = wire.client() >> get("/1") + get("/2") >> get("/3")
    for i in (b"1", b"2", b"3"):
        assert wire.engine.request().target == b"/" + i
        assert client.received() == b""
        wire.engine >> ok(i)
        assert client.answer().body == i
    assert client.is_open
    assert len(wire.engines) == 1


@pytest.mark.parametrize("end", End)
def test_rule_24_what_may_have_been_done_is_not_done_twice(end: End) -> None:
    """A reused connection may have been closed before or after the engine read the request."""
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok()
    assert client.answer().status == 200
    client >> post()
    wire.engine >> end
    assert client.answer(b"POST").reason == "upstream_reset"
    assert len(wire.engines) == 1


@pytest.mark.parametrize(
    "sent",
    [get("/", "connection: close"), get("/", "connection: x, Close"), get(version="1.0"),
     get("/", "connection: keep-alive", "connection: close"),
     get("/", "connection: keep-alive, close"),
     get("/", "connection: keep-alive", version="1.0")],
)  # fmt: skip
def test_rule_14_the_last_answer_says_so_and_closes(sent: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent + get("/never")
    wire.engine >> ok(b"x")
    assert client.answer()[b"connection"] == b"close"
    assert not client.is_open
    assert client.received() == b""
    assert len(wire.engine.seen) == 1


@pytest.mark.parametrize("field", ["connection: closed", "connection: keep-alive", "x: close", "connection:"])
def test_rule_14_nothing_else_closes(field: str) -> None:
    wire = Wire()
    client = wire.client() >> get("/", field)
    wire.engine >> ok()
    assert b"connection" not in client.answer()
    assert client.is_open


LAST = [
    ok(b"", b"connection: close"),
    ok(b"", b"connection: x, Close"),
    ok(b"", b"connection: keep-alive", b"connection: close"),
    ok().replace(b"HTTP/1.1", b"HTTP/1.0"),
    ok(b"", b"connection: x").replace(b"HTTP/1.1", b"HTTP/1.0"),
]


@pytest.mark.parametrize("last", LAST)
def test_rule_14_an_engines_last_answer_is_not_the_clients(last: bytes) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> last
    assert b"connection" not in client.answer()
    assert not wire.engine.is_open
    client >> get("/next")
    assert len(wire.engines) == 2


# Ends that come too early.


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize(
    "begun", [b"GET / HT", get()[:-2], post()[:-1], post_chunked(CHAT, b"{}", last=False)], ids=len
)
def test_rule_23_half_a_request_is_none(begun: bytes, end: End) -> None:
    wire = Wire()
    client = wire.client() >> begun >> end
    client << b""
    assert wire.engines == []
    assert not client.is_open
    wire.assert_at_rest()


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("begun", [UPLOAD + b"abc", post_chunked("/upload", b"abc", last=False)], ids=len)
def test_rule_23_half_a_request_does_not_look_whole_to_the_engine(begun: bytes, end: End) -> None:
    wire = Wire()
    wire.client() >> begun >> end
    seen = wire.engine.request()
    assert (seen.body, seen.complete) == (b"abc", False)
    assert wire.engine.aborted
    wire.assert_at_rest()


@pytest.mark.parametrize("so_far", [b"", SSE + chunked(b"a", last=False)], ids=["nothing", "half an answer"])
def test_half_close_is_a_farewell(so_far: bytes) -> None:
    """By design: one who has only shut down his sending side cannot be told from one who left."""
    wire = Wire()
    client = wire.client() >> post()
    wire.engine >> so_far
    client >> End.CLOSE
    assert wire.engine.aborted
    assert (wire.record.status, wire.record.reason) == (499, "client_gone")
    wire.assert_at_rest()


@pytest.mark.parametrize("sent", [get(), get("/", "connection: close")])
def test_half_close_after_the_answer_is_the_usual_end(sent: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent
    wire.engine >> ok(b"hello")
    client >> End.CLOSE
    assert client.answer().body == b"hello"
    assert not client.transport.aborted
    assert client.transport.lost
    assert wire.engine.is_open
    assert wire.record.status == 200


# Ends that come late, and bytes after the end.


WHOLE = {
    "HEAD": ok(),
    "GET": ok(b"mine"),
    "PUT": answer(b"200 OK", chunked(b"mine"), CHUNKED),
    "DELETE": answer(b"204 No", b""),
}


@pytest.mark.parametrize("after", [b"x", b"\r\n", b"\r\nx", b"\0", ok(b"poison"), b"HTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("method", WHOLE)
def test_rule_25_what_follows_an_answer_costs_the_connection(method: str, after: bytes, cut: bool) -> None:
    wire = Wire()
    client = wire.client() >> get(method=method)
    mine = WHOLE[method]
    for piece in (mine[:-1], mine[-1:] + after) if cut else (mine + after,):
        wire.engine >> piece
    assert client.answer(method.encode()).complete
    assert client.received() == b""
    assert not wire.engine.is_open
    client >> get()
    assert len(wire.engines) == 2
    client << b""


@pytest.mark.parametrize("later", [b"x", b"\r\n", ok(b"poison"), answer(b"408 Timeout", b"")])
def test_rule_25_bytes_on_an_idle_connection_cost_it(later: bytes) -> None:
    """Else they would be the answer to the next request, whoever's that is."""
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok() >> later
    assert not wire.engine.is_open
    assert client.answer().status == 200
    client >> get("/next") << b""
    assert len(wire.engines) == 2


def test_rule_25_a_body_that_nobody_reads_costs_the_connection() -> None:
    """The engine answers before the request is whole: what comes of it is not a next request."""
    wire = Wire()
    client = wire.client() >> UPLOAD + b"abc"
    wire.engine >> ok(b"enough")
    assert client.answer(b"POST")[b"connection"] == b"close"
    client >> b"def" + get("/never")
    assert wire.engine.aborted
    assert len(wire.engines) == 1
    assert not client.is_open


def test_rule_25_the_last_answer_is_not_eaten_by_a_reset() -> None:
    """Our side is closed first; what the client goes on sending is read, for a while, into nothing."""
    wire = Wire("max_body_bytes: 1024")
    client = wire.client() >> post(CHAT, b"x" * 2000)[:-50]
    assert client.answer(b"POST").status == 413
    assert (client.transport.eof_written, client.transport.closing) == (True, False)
    client >> b"x" * 50 + get("/never")
    assert client.received() == b""
    assert not client.transport.closing
    wire.advance(LINGER_S + 0.5)
    assert client.transport.closing
    assert wire.engines == []
    wire.assert_at_rest()


def test_rule_25_lingering_ends_with_the_client() -> None:
    wire = Wire()
    client = wire.client() >> b"nonsense\r\n\r\n"
    assert not client.transport.closing
    client >> End.CLOSE
    assert client.transport.closing


# Time.


def test_rule_29_a_slow_head_is_408() -> None:
    wire = Wire("timeouts: {head_s: 4}")
    client = wire.client() >> b"GET / HTTP/1.1\r\n"
    for _ in range(12):
        client >> b"a: b\r\n"
        wire.advance(0.5)
    refusal = client.answer()
    assert (refusal.status, refusal.reason, refusal[b"connection"]) == (408, "request_timeout", b"close")
    assert not client.is_open


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_rule_29_a_slow_body_is_408(path: str) -> None:
    wire = Wire("timeouts: {body_s: 4}")
    client = wire.client() >> get(path, "content-length: 100", method="POST")
    for _ in range(12):
        client >> b"x"
        wire.advance(0.5)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason, refusal[b"connection"]) == (408, "request_timeout", b"close")
    assert not client.is_open
    wire.assert_at_rest()


def test_rule_29_empty_lines_keep_no_connection() -> None:
    """They may stand before a request line (rule_13), but are no sign of one."""
    wire = Wire("timeouts: {keep_alive_s: 4}")
    client = wire.client()
    for _ in range(12):
        client >> b"\r\n"
        wire.advance(0.5)
    assert not client.is_open
    client << b""


def test_rule_29_half_an_empty_line_is_no_head_either() -> None:
    wire = Wire("timeouts: {head_s: 4, keep_alive_s: 8}")
    client = wire.client() >> b"\r"
    wire.advance(20)
    assert not client.is_open
