"""A connection to an engine: what is sent, what comes back, and what ends it."""

import pytest

from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import CHAT, Wire, get, post, post_chunked

# What is sent.


def test_a_head_is_rebuilt() -> None:
    wire = Wire()
    wire.client() >> get("/a?b=c", "Accept: */*", "X-Request-Id: mine")
    wire.engine << (
        b"GET /a?b=c HTTP/1.1\r\nhost: a\r\naccept: */*\r\n"
        b"via: 1.1 headgate\r\nx-forwarded-for: 192.0.2.7\r\n"
        b"x-forwarded-proto: http\r\nx-forwarded-host: a\r\nx-request-id: mine\r\n\r\n"
    )


def test_a_buffered_body_is_sent_whole_with_its_length() -> None:
    wire = Wire()
    client = wire.client() >> post_chunked(CHAT, b'{"a', b'": 1}', last=False)
    assert wire.engines == []
    client >> b"0\r\n\r\n"
    seen = wire.engine.request()
    assert seen.body == b'{"a": 1}'
    assert seen[b"content-length"] == b"8"
    assert b"transfer-encoding" not in seen


def test_a_large_buffered_body_arrives_whole() -> None:
    wire = Wire()
    wire.client() >> post(CHAT, b"x" * 100_000)
    assert wire.engine.request().body == b"x" * 100_000


def test_a_body_streams_through_as_it_comes() -> None:
    wire = Wire()
    client = wire.client() >> post_chunked("/upload", b"abc", last=False)
    assert wire.engine.sent().endswith(b"\r\n\r\n3\r\nabc\r\n")
    client >> b"1\r\nd\r\n1\r\ne\r\n0\r\n\r\n"
    wire.engine << b"2\r\nde\r\n0\r\n\r\n"


def test_a_counted_body_streams_through_uncut() -> None:
    wire = Wire()
    client = wire.client() >> get("/upload", "content-length: 4", method="POST")
    assert wire.engine.sent().endswith(b"\r\n\r\n")
    client >> b"ab"
    wire.engine << b"ab"
    client >> b"cd"
    wire.engine << b"cd"
    assert wire.engine.request()[b"content-length"] == b"4"


def test_an_empty_body_keeps_its_length() -> None:
    wire = Wire()
    wire.client() >> get("/upload", "content-length: 0", method="POST")
    assert wire.engine.request()[b"content-length"] == b"0"


@pytest.mark.parametrize(
    ("target", "sent", "host"),
    [
        ("http://other/p?q", b"/p?q", b"other"),
        ("http://other:8080", b"/", b"other:8080"),
        ("http://other?q/r", b"/?q/r", b"other"),
        ("HTTP://[::1]:1/", b"/", b"[::1]:1"),
        ("/http://x", b"/http://x", b"a"),
    ],
)
def test_an_absolute_target_replaces_host(target: str, sent: bytes, host: bytes) -> None:
    wire = Wire()
    wire.client() >> get(target)
    seen = wire.engine.request()
    assert (seen.target, seen[b"host"], seen[b"x-forwarded-host"]) == (sent, host, host)


# What comes back.


def test_an_answer_passes_with_where_the_time_went() -> None:
    wire = Wire("admission: {max_in_flight: 1}\ntelemetry: {orca: off}")
    first = wire.client() >> post()
    second = wire.client() >> post()
    wire.advance(2)
    wire.engine >> ok(b"1")
    wire.advance(0.5)
    wire.engine >> ok(b"2", b"x-model: m", b"server-timing: gpu;dur=1")
    assert first.answer(b"POST")[b"server-timing"] == b"limit;dur=0, queue;dur=0.0, upstream;dur=2000.0"
    second << (
        b"HTTP/1.1 200 OK\r\nx-model: m\r\nserver-timing: gpu;dur=1\r\ncontent-length: 1\r\n"
        b"via: 1.1 headgate\r\ndate: Tue, 14 Nov 2023 22:30:02 GMT\r\n"
        b"x-request-id: 00000000000000000000000000000002\r\n"
        b"server-timing: limit;dur=0, queue;dur=2000.0, upstream;dur=500.0\r\n\r\n2"
    )


@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_answers_pass_but_100_is_ours(status: int) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> answer(b"%d Soon" % status, b"", b"link: a", b"connection: x", b"x: y")
    wire.engine >> ok(b"late")
    seen = client.answer()
    assert seen.body == b"late"
    assert seen.interim == ([] if status == 100 else [(status, [(b"link", b"a")])])


@pytest.mark.parametrize("end", End)
def test_an_engine_that_leaves_before_its_answer(end: End) -> None:
    wire = Wire()
    client = wire.client() >> post()
    wire.engine >> b"HTTP/1.1 200 OK\r\nconte" >> end
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (502, "upstream_reset")
    assert client.is_open
    wire.assert_at_rest()


@pytest.mark.parametrize(("end", "complete"), [(End.CLOSE, True), (End.RESET, False)])
def test_the_end_of_the_connection_may_end_the_answer_and_a_reset_may_not(end: End, complete: bool) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> answer(b"200 OK", b"abc") >> b"def" >> end
    seen = client.answer()
    assert (seen.body, seen.complete) == (b"abcdef", complete)
    assert client.is_open is complete
    assert len(wire.context.connections) == 0


def test_nothing_after_a_whole_answer_is_taken_for_another() -> None:
    wire = Wire()
    client = wire.client() >> get() + get()
    wire.engine >> ok(b"1") + ok(b"poison")
    assert client.answer().body == b"1"
    assert len(wire.engines) == 2
    assert not wire.engines[0].is_open
    wire.engine >> ok(b"2")
    assert client.answer().body == b"2"


def test_bytes_on_an_idle_connection_discard_it() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok(b"1")
    wire.engine >> ok(b"poison")
    assert wire.engine.aborted
    client >> get()
    assert len(wire.engines) == 2


@pytest.mark.parametrize(
    "last",
    [ok(b"", b"connection: close"), b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"],
)
def test_a_connection_the_engine_will_close_is_not_used_again(last: bytes) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> last
    assert not wire.engine.is_open
    client >> get()
    assert len(wire.engines) == 2


def test_an_engine_that_hangs_up_while_idle_is_dialled_anew() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok(b"1") >> End.CLOSE
    client >> get()
    wire.engine >> ok(b"2")
    assert client.answer().body == b"1"
    assert client.answer().body == b"2"


# Time-outs.


def test_no_first_byte() -> None:
    wire = Wire("timeouts: {first_byte_s: 8}")
    client = wire.client() >> post()
    wire.advance(7.75)
    client << b""
    wire.advance(2.5)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (504, "first_token_timeout")
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_the_time_for_the_first_byte_begins_when_the_upload_ends() -> None:
    wire = Wire("timeouts: {first_byte_s: 4, body_s: 100}")
    client = wire.client() >> get("/upload", "content-length: 21", method="POST")
    for _ in range(20):
        client >> b"x"
        wire.advance(1)
    client >> b"x"
    wire.advance(3.75)
    client << b""
    wire.advance(1.5)
    assert client.answer(b"POST").reason == "first_token_timeout"
    wire.assert_at_rest()


def test_an_engine_that_does_not_take_the_body_is_not_waited_for_without_end() -> None:
    wire = Wire("timeouts: {first_byte_s: 8}")
    client = wire.client() >> get("/upload", "content-length: 6", method="POST") + b"a"
    wire.engine.transport.congest()
    wire.advance(7.75)
    wire.engine.transport.decongest()
    client >> b"b"
    wire.engine.transport.congest()
    wire.advance(7.75)
    client << b""
    wire.advance(2.75)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (504, "first_token_timeout")
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_a_connection_whose_engine_answered_without_taking_the_body_is_not_used_again() -> None:
    wire = Wire()
    client = wire.client() >> get("/upload", "content-length: 6", method="POST") + b"abc"
    wire.engine.transport.slow = True
    client >> b"def"
    wire.engine >> ok(b"early")
    assert client.answer(b"POST").body == b"early"
    assert wire.engine.aborted
    client >> get()
    assert len(wire.engines) == 2


@pytest.mark.parametrize("name", ["first_byte_s", "stall_s"])
def test_a_time_out_comes_at_most_a_quarter_late(name: str) -> None:
    wire = Wire(f"timeouts: {{{name}: 8}}")
    client = wire.client() >> post()
    if name == "stall_s":
        wire.engine >> SSE
    wire.advance(7.75)
    assert wire.engine.is_open
    wire.advance(2.5)
    assert wire.engine.aborted
    assert not client.is_open or name == "first_byte_s"


@pytest.mark.parametrize("head", [b"", SSE])
def test_an_exchange_keeps_the_time_outs_it_began_with(head: bytes) -> None:
    wire = Wire("timeouts: {first_byte_s: 8, stall_s: 8}")
    wire.client() >> post()
    wire.engine >> head
    wire.configure("timeouts: {first_byte_s: 1, stall_s: 1}")
    wire.advance(6)
    assert wire.engine.is_open
    wire.configure("timeouts: {first_byte_s: 600, stall_s: 600}")
    wire.advance(4.5)
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_a_stall_in_the_middle() -> None:
    wire = Wire("timeouts: {stall_s: 8, first_byte_s: 1}")
    client = wire.client() >> post()
    wire.engine >> SSE + chunked(b"data: 1\n", last=False)
    for _ in range(4):
        wire.advance(7)
        wire.engine >> chunked(b"x", last=False)
    assert wire.engine.is_open
    wire.advance(10.5)
    cut = client.answer(b"POST")
    assert not cut.complete
    assert cut.body.startswith(b"data: 1\nxxxx\n\ndata: {")
    assert cut.body.endswith(b'"code":"stalled"}}\n\n')
    assert wire.engine.aborted
    assert (wire.record.status, wire.record.reason) == (200, "stalled")


def test_an_engine_that_waits_for_the_client_is_not_stalled() -> None:
    wire = Wire("timeouts: {stall_s: 8}")
    client = wire.client() >> post()
    wire.engine >> SSE
    wire.advance(5)
    client.transport.congest()
    wire.advance(5)
    assert wire.engine.is_open
    client.transport.decongest()
    wire.advance(7)
    assert wire.engine.is_open


@pytest.mark.parametrize(
    ("field", "seconds"),
    [("x-request-timeout-ms: 1500", 1.5), ("grpc-timeout: 3S", 3), ("x-stainless-read-timeout: 2", 2)],
)
def test_the_callers_deadline(field: str, seconds: float) -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, b"{}", field)
    wire.advance(seconds - 0.25)
    client << b""
    wire.advance(0.5)
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (504, "timeout")
    assert wire.engine.aborted
    wire.assert_at_rest()


def test_nothing_is_kept_for_the_deadline_of_who_has_gone() -> None:
    wire = Wire()
    wire.client() >> post(CHAT, b"{}", "x-request-timeout-ms: 86400000") >> End.RESET
    assert not any(wire.timers._buckets.values())


def test_the_deadline_of_one_request_is_not_the_next_ones() -> None:
    wire = Wire()
    client = wire.client() >> get("/", "x-request-timeout-ms: 1500")
    wire.engine >> ok()
    client >> get()
    wire.advance(3)
    assert client.answer().status == 200
    client << b""
    assert len(wire.engines) == 1


def test_an_idle_connection_has_no_deadline() -> None:
    wire = Wire("timeouts: {first_byte_s: 1, stall_s: 1}")
    wire.client() >> get()
    wire.engine >> ok()
    wire.advance(30)
    assert wire.engine.is_open


def test_an_idle_connection_is_read_whatever_its_last_client_did() -> None:
    """One that does not read an interim answer pauses the engine, whose answer is in the same read."""
    wire = Wire()
    slow = wire.client() >> get()
    slow.transport.slow = True
    wire.engine >> answer(b"103 E", b"", b"link: a") + ok()
    assert wire.engine.transport.reading
    other = wire.client() >> get("/other")
    wire.engine >> ok(b"other")
    assert other.answer().body == b"other"


def test_interim_answers_do_not_put_off_the_first_byte() -> None:
    wire = Wire("timeouts: {first_byte_s: 10}")
    client = wire.client() >> get()
    for _ in range(3):
        wire.advance(4)
        wire.engine >> answer(b"102 Processing", b"")
    wire.advance(2)
    assert client.answer().reason == "first_token_timeout"


def test_what_came_before_a_fault_is_the_answers() -> None:
    wire = Wire()
    client = wire.client() >> post()
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    wire.engine >> chunked(b"data: 2\n\n", last=False) + b"zz\r\n"
    body = client.received().partition(b"\r\n\r\n")[2]
    assert body.index(b"data: 2") < body.index(b"upstream_protocol")


# The head of a stream waits for its first token.

STREAM = b'{"stream": true}'
UNTIL_CLOSE = answer(b"200 OK", b"", b"content-type: text/event-stream")


@pytest.mark.parametrize("head", [SSE, UNTIL_CLOSE])
@pytest.mark.parametrize("first", ["alone", "with the head", "in pieces"])
def test_the_head_of_a_stream_comes_with_its_first_token(head: bytes, first: str) -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, STREAM)
    token = chunked(b"data: 1\n\n", last=False) if head is SSE else b"data: 1\n\n"
    if first == "alone":
        wire.engine >> head
        wire.advance(1)
        assert not client.has_news
        wire.engine >> token
    elif first == "in pieces":
        for i in range(len(head)):
            wire.engine >> head[i : i + 1]
        assert not client.has_news
        wire.engine >> token
    else:
        wire.engine >> head + token
    found = client.answer(b"POST")
    assert (found.status, found.body, found.complete) == (200, b"data: 1\n\n", False)


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b"{}", SSE),
        (STREAM, answer(b"404 Not Found", b"", b"content-length: 5")),
        (STREAM, answer(b"429 Too Many Requests", b"", b"transfer-encoding: chunked")),
    ],
)
def test_other_heads_pass_at_once(body: bytes, head: bytes) -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, body)
    wire.engine >> head
    assert client.answer(b"POST").status == int(head.split()[1])


@pytest.mark.parametrize("end", End)
@pytest.mark.parametrize("head", [SSE, UNTIL_CLOSE])
def test_a_stream_that_breaks_before_its_first_token_gets_an_answer_of_ours(head: bytes, end: End) -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, STREAM)
    wire.engine >> head >> end
    found = client.answer(b"POST")
    if head is UNTIL_CLOSE and end is End.CLOSE:
        assert (found.status, found.body, found.complete) == (200, b"", True), "it was whole, and empty"
    else:
        assert (found.status, found.reason, found.complete) == (502, "upstream_reset", True)
    wire.assert_at_rest()


def test_a_stream_without_a_token_is_whole_all_the_same() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, STREAM)
    wire.engine >> SSE >> b"0\r\n\r\n"
    found = client.answer(b"POST")
    assert (found.status, found.body, found.complete) == (200, b"", True)


def test_a_head_is_no_first_token() -> None:
    """An engine that says 200 at once and then nothing is given up for it."""
    wire = Wire("timeouts: {first_byte_s: 8}")
    client = wire.client() >> post(CHAT, STREAM)
    wire.engine >> SSE
    wire.advance(10.5)
    found = client.answer(b"POST")
    assert (found.status, found.reason) == (504, "first_token_timeout")
    assert wire.engine.aborted


def test_nor_does_it_end_the_callers_deadline() -> None:
    wire = Wire()
    client = wire.client() >> post(CHAT, STREAM, "x-stainless-read-timeout: 3")
    wire.engine >> SSE
    wire.advance(3.5)
    assert client.answer(b"POST").reason == "timeout"
