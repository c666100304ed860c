"""Bytes of an engine become one answer at a time, or none."""

import pytest

from sidecar.errors import ProtocolError
from sidecar.http1.response import MAX_HEAD_BYTES, MAX_INTERIM, ResponseReader
from tests.harness.engine import answer, chunked, ok

CHUNKED = b"transfer-encoding: chunked"


def reading(data: bytes = b"", method: bytes = b"GET") -> ResponseReader:
    reader = ResponseReader()
    reader.expect(method)
    if data:
        reader.feed(data)
    return reader


def status(reader: ResponseReader) -> int:
    assert reader.head is not None
    return reader.head.status


def test_an_answer_keeps_what_was_sent() -> None:
    reader = reading(ok(b"hi", b"A: 1 \t", b"a:2"))
    assert reader.head is not None
    assert reader.head.fields == [(b"content-length", b"2"), (b"a", b"1"), (b"a", b"2")]
    assert (reader.head.status, reader.head.length, reader.head.keep_alive) == (200, 2, True)
    assert reader.take() == b"hi"
    assert reader.take() == b""
    assert reader.complete
    assert not reader.excess


def test_a_chunked_body_is_handed_on_as_it_comes() -> None:
    reader = reading(answer(b"200 OK", chunked(b"a", last=False), CHUNKED))
    assert reader.take() == b"a"
    assert not reader.end_of_stream()
    reader.feed(b"2\r\nb")
    assert reader.take() == b"b"
    reader.feed(b"c\r\n0\r\nlate: 1\r\n\r\n")
    assert reader.take() == b"c"
    assert reader.complete
    assert reader.head is not None
    assert reader.head.fields == [(b"transfer-encoding", b"chunked")]


def test_without_a_length_the_connection_ends_it() -> None:
    reader = reading(answer(b"200 OK", b"abc"))
    assert not reader.complete
    assert reader.take() == b"abc"
    assert reader.end_of_stream()
    assert reader.complete


def test_the_end_of_the_connection_ends_nothing_else() -> None:
    for data in (b"", b"HTTP/1.1 200", answer(b"200 OK", b"a", b"content-length: 2"), answer(b"102 P", b"")):
        assert not reading(data).end_of_stream()


@pytest.mark.parametrize("framing", [b"content-length: 5", CHUNKED, b"a: b"])
@pytest.mark.parametrize(("method", "line"), [(b"HEAD", b"200 OK"), (b"GET", b"204 N"), (b"GET", b"304 N")])
def test_what_has_no_body_is_whole_with_its_head(method: bytes, line: bytes, framing: bytes) -> None:
    reader = reading(answer(line, b"", framing), method)
    assert reader.complete
    assert reader.take() == b""
    reader.expect(b"GET")
    reader.feed(ok(b"next"))
    assert reader.take() == b"next"


def test_a_body_after_head_is_excess() -> None:
    reader = reading(ok(b"hello"), b"HEAD")
    assert reader.complete
    assert reader.take() == b""
    assert reader.excess


@pytest.mark.parametrize("rest", [b"x", b"HTTP/1.1 200 OK\r\n\r\n", ok(b"second"), b"0"])
@pytest.mark.parametrize("first", [ok(b"a"), ok(b"a", b"connection: close"), answer(b"204 N", b"")])
def test_what_follows_an_answer_is_excess_and_not_read(first: bytes, rest: bytes) -> None:
    reader = reading(first + rest)
    assert reader.complete
    assert reader.excess
    assert reader.take() == first.partition(b"\r\n\r\n")[2]


def test_interim_answers_are_apart() -> None:
    reader = reading(answer(b"100 C", b"") + answer(b"103 Early", b"", b"link: a"))
    assert [head.status for head in reader.interim] == [100, 103]
    assert reader.interim[1].fields == [(b"link", b"a")]
    assert reader.head is None
    reader.feed(ok(b"x"))
    assert status(reader) == 200
    assert reader.take() == b"x"


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 20 No\r\n\r\n",
        b"HTTP/1.1 200 OK\n\n",
        answer(b"101 Switch", b"", b"connection: upgrade", b"upgrade: websocket"),
        answer(b"101 Switch", b""),
        answer(b"200 OK", b"", CHUNKED, b"content-length: 3"),
        answer(b"200 OK", b"", CHUNKED, CHUNKED),
        answer(b"200 OK", b"", b"transfer-encoding: gzip, chunked"),
        answer(b"200 OK", b"", b"transfer-encoding: gzip"),
        answer(b"200 OK", b"", b"transfer-encoding:"),
        answer(b"103 Early", b"", b"transfer-encoding: gzip"),
        answer(b"200 OK", b"", b"content-length: 1", b"content-length: 1"),
        answer(b"200 OK", b"", b"content-length: 1, 1"),
        answer(b"200 OK", b"", b"content-length: +1"),
        answer(b"200 OK", b"", b"content-type: a/b", b"content-type: a/c"),
        answer(b"200 OK", b"", b"a: b", b" folded"),
        answer(b"200 OK", b"", b"a : b"),
        answer(b"200 OK", b"", b"a: \0"),
        answer(b"200 OK", b"zz\r\n", CHUNKED),
        answer(b"200 OK", b"1\r\nab\r\n", CHUNKED),
    ],
)
def test_what_is_not_an_answer_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError) as error:
        reading(data)
    assert error.value.refusal.reason == "upstream_protocol"


def test_a_head_has_an_end() -> None:
    reader = reading(b"HTTP/1.1 200 OK\r\n")
    line = b"a: " + b"b" * 1000 + b"\r\n"
    for _ in range(MAX_HEAD_BYTES // len(line) - 1):
        reader.feed(line)
    with pytest.raises(ProtocolError):
        reader.feed(line * 2)


@pytest.mark.parametrize("together", [True, False])
def test_interim_answers_have_an_end(together: bool) -> None:
    interim = answer(b"102 P", b"")
    reader = reading(interim * (MAX_INTERIM - 1))
    reader.interim.clear()
    reader.feed(interim)
    reader.interim.clear()
    with pytest.raises(ProtocolError, match="too many interim"):
        reading(interim * (MAX_INTERIM + 1)) if together else reader.feed(interim)
