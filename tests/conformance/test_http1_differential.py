"""Our readers beside h11, over mutated messages: what we accept, h11 must read in the same way.

We may refuse more. Where we accept what h11 does not, or read it otherwise, it is in `LAXER`, with
the reason why that is harmless, and an example that keeps the list honest.
"""

import re
from typing import NamedTuple

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ProtocolError
from sidecar.http1.request import RequestReader
from sidecar.http1.response import ResponseReader
from tests.harness.engine import Fields, answer, chunked, ok
from tests.harness.wire import get, post, post_chunked

CHUNKED = b"transfer-encoding: chunked"
_HUGE = 1 << 20


class Message(NamedTuple):
    """A request or an answer, as one of the two read it. `start` is its first line."""

    start: tuple[bytes | int | str, ...]
    fields: Fields
    body: bytes
    complete: bool


class Laxer(NamedTuple):
    why: str
    pattern: re.Pattern[bytes]
    example: bytes


LAXER_REQUESTS = [
    Laxer(
        "more than one space in the request line: it is written anew, with one",
        re.compile(rb"[A-Z-]+ (?: +\S+ +|\S+  +)HTTP/1\.[01]\r\n"),
        b"GET  /  HTTP/1.1\r\nhost: a\r\n\r\n",
    ),
    Laxer(
        "RTSP and ICE are taken for HTTP: they are passed on, and answered, as such",
        re.compile(rb"(RTSP|ICE)/1\.[01]\r\n"),
        get().replace(b"HTTP/1.1", b"RTSP/1.0"),
    ),
]
LAXER_ANSWERS = [
    Laxer(
        "an unknown coding in the trailers: they are dropped unread",
        re.compile(rb"\n0+(;[^\n]*)?\r\n([^\r\n]+\r\n)*transfer-encoding:", re.IGNORECASE),
        answer(b"200 OK", b"1\r\na\r\n0\r\ntransfer-encoding: gzip\r\n\r\n", CHUNKED),
    ),
    Laxer(
        "RTSP and ICE are taken for HTTP: the status line is written anew",
        re.compile(rb"(RTSP|ICE)/1\.[01] "),
        ok().replace(b"HTTP/1.1", b"RTSP/1.0"),
    ),
    Laxer(
        "control characters in the reason phrase: it is not passed on",
        re.compile(rb"HTTP/1\.[01] \d{3}[^\r\n]*[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
        answer(b"200 \0", b"", b"content-length: 0"),
    ),
    Laxer(
        "empty lines before a status line say nothing",
        re.compile(rb"(^|\r\n\r\n)[\r\n]+HTTP/1"),
        b"\r\n" + ok(),
    ),
]


def our_requests(data: bytes) -> list[Message]:
    reader = RequestReader()
    try:
        reader.feed(data)
    except ProtocolError:
        if reader.current is not None:
            reader.requests.pop()  # refused in its body
    return [
        Message((r.method, r.target, r.version), lowered(r.fields), r.take_body(), r.complete)
        for r in reader.requests
    ]


def h11_requests(data: bytes) -> list[Message]:
    """h11 does not skip the empty lines before a request line, as RFC 9112 section 2.2 wants it."""
    found: list[Message] = []
    while data := data.lstrip(b"\r\n"):
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HUGE)
        parser.receive_data(data)
        message = h11_message(parser)
        if message is None:
            break
        found.append(message)
        if not message.complete:
            break
        data = parser.trailing_data[0]
    return found


def h11_message(parser: h11.Connection) -> Message | None:
    """The next message that is no interim answer; None when there is none, or its head is invalid."""
    head: h11.Request | h11.Response | None = None
    body, complete = b"", False
    try:
        while not complete:
            event = parser.next_event()
            if isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                complete = True
            elif not isinstance(event, h11.InformationalResponse):
                break
    except h11.RemoteProtocolError:
        pass
    if head is None:
        return None
    version = head.http_version.decode()
    start = (head.method, head.target, version) if isinstance(head, h11.Request) else (head.status_code,)
    return Message(start, lowered(list(head.headers)), body, complete)


def lowered(fields: Fields) -> Fields:
    """h11 gives transfer codings in lower case."""
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in fields]


def our_answer(data: bytes, method: bytes) -> Message | None:
    """The answer that ends with the connection, as `data` does."""
    reader = ResponseReader()
    reader.expect(method)
    try:
        reader.feed(data)
    except ProtocolError:
        return None
    if reader.head is None:
        return None
    complete = reader.end_of_stream()
    return Message((reader.head.status,), lowered(reader.head.fields), reader.take(), complete)


def h11_answer(data: bytes, method: bytes) -> Message | None:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HUGE)
    parser.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    parser.receive_data(b"")
    return h11_message(parser)


def known(points: list[Laxer], data: bytes) -> bool:
    return any(point.pattern.search(data) for point in points)


# Seeds, and what is done to them.

REQUESTS = [
    get("/a?b", "accept: */*", "x: y z"),
    get("*", method="OPTIONS"),
    get("http://b:80/c"),
    get(version="1.0"),
    get("/", "connection: close"),
    get("/", "connection: upgrade", "upgrade: h2c"),
    get("/", "expect: 100-continue", "content-length: 0"),
    get(method="HEAD") + get("/2"),
    post("/v1/x", b"hello") + get("/2"),
    post_chunked("/up", b"hello", b"0\r\n\r\n") + post("/2", b"GET / HTTP/1.1\r\n\r\n"),
    post_chunked("/up", b"a", last=False) + b"1;a=b\r\nb\r\n0\r\nt: u\r\n\r\n" + get("/2"),
    b"\r\n" + get(),
]
ANSWERS = [
    ok(b"hello", b"content-type: a/b"),
    ok(),
    ok(b"x", b"connection: close"),
    answer(b"204 No Content", b""),
    answer(b"304 Not Modified", b"", b"content-length: 5"),
    answer(b"200 OK", chunked(b"hello", b"0\r\n\r\n"), CHUNKED),
    answer(b"200 OK", b"1;a=b\r\nb\r\n0\r\nt: u\r\n\r\n", CHUNKED),
    answer(b"200 OK", b"until the end"),
    answer(b"103 Early Hints", b"", b"link: a") + ok(b"late"),
    answer(b"100 Continue", b"") + answer(b"500 No", b"x", b"content-length: 1"),
    ok(b"hello").replace(b"1.1", b"1.0"),
    answer(b"200", b"", b"content-length: 0"),
]
TOKENS = [
    b"", b" ", b"  ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b"\x0b", b"\x0c", b"\x7f",
    b"\x80", b"\xff", b":", b";", b",", b"#", b"?", b"/", b"\\", b'"', b"@", b"%", b"+", b"-", b"_", b"0",
    b"1", b"5", b"9", b"a", b"f", b"x", b"0x", b"0\r\n\r\n", b"1\r\na\r\n", b"a: b\r\n", b" a: b\r\n",
    b"a : b\r\n", b"host: b\r\n", b"Host:", b"content-length: 1\r\n", b"Content-Length: 0\r\n",
    b"content-length: 01\r\n", b"transfer-encoding: chunked\r\n", b"Transfer-Encoding: Chunked\r\n",
    b"transfer-encoding: gzip, chunked\r\n", b"transfer-encoding: identity\r\n", b"connection: close\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n", b"connection: keep-alive\r\n", b"chunked", b"HTTP/1.1",
    b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"RTSP/1.0", b"ICE/1.0", b"GET ", b"HEAD",
    b"POST / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\n", b"http://", b"200 OK", b"100 ", b"204", b"304",
    b"101", b"099", b"600",
]  # fmt: skip


def edit(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, length, token in edits:
        at %= len(data) + 1
        data = data[:at] + token + data[at + length :]
    return data


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    token = st.sampled_from(TOKENS) | st.binary(max_size=2)
    edits = st.lists(st.tuples(st.integers(0, 300), st.sampled_from([0, 0, 1, 2, 8]), token), max_size=4)
    return st.builds(edit, st.sampled_from(seeds), edits)


SEARCH = settings(max_examples=10 * settings.default.max_examples)


def agree_on_requests(data: bytes) -> bool:
    ours, theirs = our_requests(data), h11_requests(data)
    return theirs[: len(ours)] == ours


def agree_on_answer(data: bytes, method: bytes = b"GET") -> bool:
    ours = our_answer(data, method)
    return ours is None or ours == h11_answer(data, method)


@SEARCH
@given(data=mutated(REQUESTS))
def test_requests(data: bytes) -> None:
    assert agree_on_requests(data) or known(LAXER_REQUESTS, data)


@SEARCH
@given(data=mutated(ANSWERS), method=st.sampled_from([b"GET", b"GET", b"HEAD"]))
def test_answers(data: bytes, method: bytes) -> None:
    assert agree_on_answer(data, method) or known(LAXER_ANSWERS, data)


@pytest.mark.parametrize("seed", REQUESTS)
def test_the_seeds_are_read_whole(seed: bytes) -> None:
    assert all(message.complete for message in our_requests(seed))
    assert len(our_requests(seed)) == len(re.findall(rb"HTTP/1\.[01]\r\n(?!\r\n$)", seed))


@pytest.mark.parametrize("seed", ANSWERS)
def test_the_seeds_are_read_alike(seed: bytes) -> None:
    ours = our_answer(seed, b"GET")
    assert ours is not None
    assert ours == h11_answer(seed, b"GET")


@pytest.mark.parametrize("point", LAXER_REQUESTS, ids=lambda point: point.why)
def test_we_are_still_laxer(point: Laxer) -> None:
    assert not agree_on_requests(point.example)
    assert point.pattern.search(point.example)


@pytest.mark.parametrize("point", LAXER_ANSWERS, ids=lambda point: point.why)
def test_we_are_still_laxer_with_engines(point: Laxer) -> None:
    assert not agree_on_answer(point.example)
    assert point.pattern.search(point.example)
