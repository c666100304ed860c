"""HTTP/1.1 answers as an intermediary has to pass them on, or not (RFC 9110, RFC 9112), case by case."""

from typing import NamedTuple

import pytest

from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import Client, Wire, get, post

CHUNKED = b"transfer-encoding: chunked"


class Passed(NamedTuple):
    name: str
    sent: bytes
    answered: tuple[bytes | End, ...]
    came: bytes  # after the fields that every answer has


SHARED = (
    b"via: 1.1 headgate\r\nx-request-id: 00000000000000000000000000000001\r\n"
    b"server-timing: limit;dur=0, queue;dur=0.0, upstream;dur=0.0\r\n"
)
CLOSE = b"connection: close\r\n"
OK = b"HTTP/1.1 200 OK\r\n"
HELLO = b"5\r\nhello\r\n"
HEAD = get(method="HEAD")
ONE_0 = get(version="1.0")
LENGTH_5 = b"content-length: 5\r\n"
CHUNKS = CHUNKED + b"\r\n"

PASSED = [
    Passed("length", get(), (ok(b"hello"),), OK + LENGTH_5 + SHARED + b"\r\nhello"),
    Passed("no body", get(), (ok(),), OK + b"content-length: 0\r\n" + SHARED + b"\r\n"),
    Passed(
        "chunks", get(), (answer(b"200 OK", chunked(b"hello"), CHUNKED),),
        OK + CHUNKS + SHARED + b"\r\n" + HELLO + b"0\r\n\r\n",
    ),
    Passed(
        "trailers end here", get(), (answer(b"200 OK", HELLO + b"0\r\nx: y\r\n\r\n", CHUNKED),),
        OK + CHUNKS + SHARED + b"\r\n" + HELLO + b"0\r\n\r\n",
    ),
    Passed(
        "no end but the connection's", get(), (answer(b"200 OK", b"hello"), End.CLOSE),
        OK + CHUNKS + SHARED + b"\r\n" + HELLO + b"0\r\n\r\n",
    ),
    Passed(
        "head, length", HEAD, (answer(b"200 OK", b"", b"content-length: 5"),),
        OK + LENGTH_5 + SHARED + b"\r\n",
    ),
    Passed("head, chunks", HEAD, (answer(b"200 OK", b"", CHUNKED),), OK + SHARED + b"\r\n"),
    Passed("head, neither", HEAD, (answer(b"200 OK", b""),), OK + SHARED + b"\r\n"),
    Passed("204", get(), (answer(b"204 No", b""),), b"HTTP/1.1 204 No Content\r\n" + SHARED + b"\r\n"),
    Passed(
        "204 with a length", get(), (answer(b"204 No", b"", b"content-length: 5"),),
        b"HTTP/1.1 204 No Content\r\n" + SHARED + b"\r\n",
    ),
    Passed(
        "304 with a length", get(), (answer(b"304 No", b"", b"content-length: 5", b'etag: "x"'),),
        b'HTTP/1.1 304 Not Modified\r\netag: "x"\r\n' + LENGTH_5 + SHARED + b"\r\n",
    ),
    Passed("304", get(), (answer(b"304 No", b""),), b"HTTP/1.1 304 Not Modified\r\n" + SHARED + b"\r\n"),
    Passed(
        "any status", get(), (answer(b"799 Odd", b"", b"content-length: 0"),),
        b"HTTP/1.1 799 \r\ncontent-length: 0\r\n" + SHARED + b"\r\n",
    ),
    Passed(
        "an engine of 1.0", get(), (ok(b"hello").replace(b"/1.1", b"/1.0"),),
        OK + LENGTH_5 + SHARED + b"\r\nhello",
    ),
    Passed("1.0", ONE_0, (ok(b"hello"),), OK + LENGTH_5 + SHARED + CLOSE + b"\r\nhello"),
    Passed(
        "1.0, chunks", ONE_0, (answer(b"200 OK", chunked(b"he", b"llo"), CHUNKED),),
        OK + SHARED + CLOSE + b"\r\nhello",
    ),
    Passed("1.0, interim", ONE_0, (answer(b"103 E", b"") + ok(),),
           OK + b"content-length: 0\r\n" + SHARED + CLOSE + b"\r\n"),
    Passed("interim", get(), (answer(b"103 E", b"", b"link: x") + ok(),),
           b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"content-length: 0\r\n" + SHARED + b"\r\n"),
    Passed("100", get(), (answer(b"100 C", b"") + ok(),), OK + b"content-length: 0\r\n" + SHARED + b"\r\n"),
]  # fmt: skip


@pytest.mark.parametrize("case", PASSED, ids=lambda case: case.name)
def test_passed(case: Passed) -> None:
    wire = Wire()
    client = wire.client() >> case.sent
    for step in case.answered:
        wire.engine >> step
    client << case.came
    assert client.is_open == (CLOSE not in case.came)
    wire.assert_at_rest()


NOT_ANSWERS = {
    "nonsense": b"nonsense\r\n\r\n",
    "HTTP/2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "no status": b"HTTP/1.1\r\n\r\n",
    "099": answer(b"099 No", b""),
    "a switch nobody asked for": answer(b"101 Switch", b"", b"connection: upgrade", b"upgrade: websocket"),
    "both framings": answer(b"200 OK", chunked(b"a"), CHUNKED, b"content-length: 1"),
    "two lengths": answer(b"200 OK", b"a", b"content-length: 1", b"content-length: 2"),
    "a length that is none": answer(b"200 OK", b"a", b"content-length: 1x"),
    "another coding": answer(b"200 OK", b"", b"transfer-encoding: gzip, chunked"),
    "obs-fold": answer(b"200 OK", b"", b"a: b", b" c"),
    "bare LF": ok().replace(b"\r\n", b"\n"),
    "a head too large": b"HTTP/1.1 200 OK\r\n" + b"a: " + b"b" * 300_000,
    "a broken chunk": answer(b"200 OK", b"zz\r\n", CHUNKED),
}


@pytest.mark.parametrize("name", NOT_ANSWERS)
def test_what_is_no_answer_is_502(name: str) -> None:
    wire = Wire()
    client = wire.client() >> get("/v1/x")
    wire.engine >> NOT_ANSWERS[name]
    refusal = client.answer()
    assert (refusal.status, refusal.reason) == (502, "upstream_protocol")
    assert wire.engine.aborted
    client >> get("/next")
    assert len(wire.engines) == 2


@pytest.mark.parametrize("after", [b"x", b"\r\nx", ok(b"poison"), b"HTTP/1.1 200 OK\r\n"])
def test_what_follows_an_answer_costs_the_connection(after: bytes) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok(b"mine") + after
    assert client.answer().body == b"mine"
    assert client.received() == b""
    assert not wire.engine.is_open
    client >> get()
    assert len(wire.engines) == 2
    client << b""


# Answers that break off: none may look complete.


def broken(config: str, sent: bytes, *steps: bytes | End) -> tuple[Wire, Client]:
    wire = Wire(config)
    client = wire.client() >> sent
    for step in steps:
        wire.engine >> step
    return wire, client


@pytest.mark.parametrize("end", End)
def test_an_event_stream_ends_with_an_error_and_no_last_chunk(end: End) -> None:
    wire, client = broken("", post(), SSE + chunked(b"data: 1\n\n", b"data: {", last=False), end)
    event = (
        b'\n\ndata: {"error":{"message":"The model server closed the connection.",'
        b'"type":"server_error","param":null,"code":"upstream_reset"}}\n\n'
    )
    _, _, body = client.received().partition(b"\r\n\r\n")
    assert body == b"10\r\ndata: 1\n\ndata: {\r\n" + b"%x\r\n%b\r\n" % (len(event), event)
    assert client.transport.closing
    assert not client.transport.aborted
    assert (wire.record.status, wire.record.reason) == (200, "upstream_reset")


@pytest.mark.parametrize(
    "head",
    [answer(b"200 OK", b"", CHUNKED, b"content-type: application/json"),
     answer(b"200 OK", b"", CHUNKED, b"content-type: text/event-stream", b"content-encoding: gzip")],
)  # fmt: skip
@pytest.mark.parametrize("end", [End.CLOSE, End.RESET, b"zz\r\n"])
def test_other_chunked_answers_lack_their_last_chunk(head: bytes, end: bytes | End) -> None:
    _, client = broken("", post(), head + b"1\r\na\r\n", end)
    assert client.received().endswith(b"\r\n\r\n1\r\na\r\n")
    assert not client.is_open


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("end", End)
def test_a_counted_answer_is_cut_short(end: End, version: str) -> None:
    _, client = broken("", get(version=version), ok(b"hello")[:-1], end)
    cut = client.answer()
    assert (cut.body, cut.complete) == (b"hell", False)
    assert client.transport.closing


def test_where_the_connection_is_the_end_it_is_reset() -> None:
    _, client = broken("", ONE_0, SSE + b"1\r\na\r\n", End.RESET)
    assert client.was_reset
    cut = client.answer()
    assert (cut.body, cut.complete) == (b"a", False)


def test_a_unix_socket_has_no_reset_to_give() -> None:
    wire = Wire()
    client = wire.client(peer="") >> ONE_0
    assert wire.engine.request()[b"x-forwarded-for"] == b"unknown"
    wire.engine >> SSE + b"1\r\na\r\n" >> End.RESET
    assert client.transport.aborted
    assert client.transport.get_extra_info("socket").options == []
