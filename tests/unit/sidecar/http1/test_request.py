"""Bytes of a client become requests, or one refusal."""

import pytest

from sidecar.errors import ProtocolError
from sidecar.http1.request import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_TARGET_BYTES,
    MAX_WAITING,
    Request,
    RequestReader,
)
from tests.harness.wire import get, post, post_chunked

SEGMENT = b"x" * 65536


def read(*pieces: bytes) -> list[Request]:
    reader = RequestReader()
    for piece in pieces:
        reader.feed(piece)
    return list(reader.requests)


def refused(*pieces: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        read(*pieces)
    return error.value.refusal.reason


def test_a_request_keeps_what_was_sent() -> None:
    (request,) = read(b"GET /a?b=%20 HTTP/1.1\r\nHost: h\r\nX-A:  1 \r\nx-a: 2\t\r\nB:\r\n\r\n")
    assert (request.method, request.target, request.version) == (b"GET", b"/a?b=%20", "1.1")
    assert request.fields == [(b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"2"), (b"b", b"")]
    assert request.noted == {b"host": b"h"}
    assert request.passing == [b"x-a: 1\r\n", b"x-a: 2\r\n", b"b: \r\n"]
    assert request.complete
    assert request.keep_alive
    assert request.length == 0


@pytest.mark.parametrize(
    ("data", "length"), [(post("/", b"hello"), 5), (post_chunked("/", b"he", b"llo"), None)]
)
def test_a_body_is_taken_as_it_comes(data: bytes, length: int | None) -> None:
    reader = RequestReader()
    reader.feed(data[:-4])
    (request,) = reader.requests
    taken = request.take_body()
    assert request is reader.current
    assert not request.complete
    assert request.received == len(taken)
    reader.feed(data[-4:])
    assert taken + request.take_body() == b"hello"
    assert request.take_body() == b""
    assert request.complete
    assert request.received == 5
    assert request.length == length
    assert reader.current is None


def test_idle_is_between_requests_only() -> None:
    reader = RequestReader()
    assert reader.is_idle
    reader.feed(b"\r\n")  # before a request line that says nothing
    assert reader.is_idle
    for piece in (b"G", b"ET /", b" HTTP/1.1\r\n", b"host: a\r\n", b"content-length: 1\r\n\r\n"):
        reader.feed(piece)
        assert not reader.is_idle
    reader.feed(b"x")
    assert reader.is_idle
    reader.feed(get() + b"G")
    assert not reader.is_idle


def test_trailers_are_dropped() -> None:
    (request, second) = read(post_chunked("/", b"a", last=False) + b"0\r\nHost: evil\r\nX: y\r\n\r\n" + get())
    assert request.fields == [(b"host", b"a"), (b"transfer-encoding", b"chunked")]
    assert second.fields == [(b"host", b"a")]


def test_the_offer_of_h2c_is_ignored_however_often_it_is_made() -> None:
    offer = get("/", "connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAA")
    reader = RequestReader()
    reader.feed(offer * 2000 + post("/", b"ok"))
    for _ in range(2000):
        assert reader.requests.popleft().target == b"/"
        reader.feed(b"")
    assert reader.requests.popleft().take_body() == b"ok"


def test_no_more_is_read_ahead_than_there_may_wait() -> None:
    reader = RequestReader()
    reader.feed(get() * 100 + b"GET / HT")
    reader.feed(b"TP/1.1\r\nhost: b\r\n\r\n")
    assert len(reader.requests) == MAX_WAITING
    read = 0
    while reader.requests:
        rests = read < 101 - MAX_WAITING
        assert (reader.has_rest, reader.is_idle) == (rests, not rests)
        last = reader.requests.popleft()
        read += 1
        reader.feed(b"")
    assert (read, last.noted[b"host"]) == (101, b"b")


@pytest.mark.parametrize(
    "target", ["/", "//a", "/a//b?c=/?d", "http://h", "HTTPS://h:1/a?b", "http://[::1]:80/", "http://h?a/b"]
)
def test_targets_are_kept(target: str) -> None:
    assert read(get(target))[0].target == target.encode()


@pytest.mark.parametrize(
    "target",
    ["*", "a", "a:80", "http:///a", "http://u@h/", "http://u:p@h/", "ftp://h/", "/a#b", "http://h/#", "http://a,b/"],
)
def test_other_targets_are_malformed(target: str) -> None:
    assert refused(get(target)) == "malformed"


def test_the_asterisk_is_for_options() -> None:
    assert read(get("*", method="OPTIONS"))[0].target == b"*"


@pytest.mark.parametrize("version", ["2.0", "1.2", "0.9", "3.0"])
@pytest.mark.parametrize("split", [0, 8, 12, 14])
def test_a_version_we_do_not_speak_is_named_however_it_comes(version: str, split: int) -> None:
    data = get(version=version)
    assert refused(data[:split], data[split:]) == "version"


def test_http_2_begun_without_asking_is_a_version() -> None:
    assert refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == "version"


@pytest.mark.parametrize("before", [b"", get(), post("/", b"x")])
def test_the_sizes_of_a_head_are_bounded_wherever_it_begins(before: bytes) -> None:
    largest = MAX_HEAD_BYTES - len(b"host: a\r\n") - len(b"b: \r\n")
    assert len(read(before + get("/", "b: " + "c" * largest))) == 1 + bool(before)
    assert refused(before + get("/", "b: " + "c" * (largest + 1))) == "headers_too_large"
    assert read(before + get("/", *["b: c"] * (MAX_FIELDS - 1)))
    assert refused(before + get("/", *["b: c"] * MAX_FIELDS)) == "headers_too_large"
    assert read(before + get("/" + "a" * (MAX_TARGET_BYTES - 1)))
    assert refused(before + get("/" + "a" * MAX_TARGET_BYTES)) == "uri_too_long"


def test_much_before_a_head_is_not_counted_to_it() -> None:
    start, rest = get("/", "b: c")[:20], get("/", "b: c")[20:]
    assert len(read(post("/", SEGMENT * 3) + start, rest)) == 2


UPLOAD = get("/", "transfer-encoding: chunked", method="POST")


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        (b"GET / HTTP/1.1\r\na: ", "headers_too_large"),
        (b"GET / HTTP/1.1\r\n", "headers_too_large"),
        (UPLOAD + b"1;", "malformed"),
        (UPLOAD + b"1\r\na\r\n0\r\na: ", "headers_too_large"),
    ],
)
def test_nothing_grows_without_end(start: bytes, reason: str) -> None:
    assert refused(start, *[SEGMENT] * 3) == reason


def test_a_long_body_grows_without_end() -> None:
    reader = RequestReader()
    reader.feed(get("/", "transfer-encoding: chunked", method="POST"))
    for _ in range(20):
        reader.feed(b"10000\r\n" + SEGMENT + b"\r\n")
        reader.requests[0].take_body()
    assert reader.requests[0].received == 20 * 65536


def test_a_long_target_is_refused_before_it_ends() -> None:
    assert refused(b"GET /" + b"a" * MAX_TARGET_BYTES) == "uri_too_long"


def test_requests_before_a_malformed_one_are_there() -> None:
    reader = RequestReader()
    with pytest.raises(ProtocolError):
        reader.feed(get("/a") + b"nonsense\r\n")
    assert [request.target for request in reader.requests] == [b"/a"]
