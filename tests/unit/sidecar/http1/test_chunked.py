"""A chunked body, in whatever reads it comes."""

import itertools

import pytest

from sidecar.errors import HEADERS_TOO_LARGE, MALFORMED, ProtocolError
from sidecar.http1.chunked import (
    MAX_EXTENSIONS,
    MAX_SIZE_LINE,
    MAX_TRAILER_FIELDS,
    MAX_TRAILERS,
    ChunkedReader,
)

BODY = b"3\r\nabc\r\n0a;x=y\r\n0123456789\r\n1\r\n\n\r\n0\r\nT: u\r\n\r\n"


class Reading:
    """What a reader made of the bytes it was fed."""

    def __init__(self, *reads: bytes) -> None:
        self.reader = ChunkedReader(MALFORMED, HEADERS_TOO_LARGE, {})
        self.pieces: list[bytes] = []
        self.rest = b""
        for read in reads:
            self.feed(read)

    def feed(self, read: bytes) -> bool:
        """Whether `read` was chunks from first byte to last."""
        self.rest = read[self.reader.feed(read, 0, self.pieces.append) :]
        return self.reader.whole


def refused(*reads: bytes) -> str:
    with pytest.raises(ProtocolError) as error:
        Reading(*reads)
    return error.value.refusal.reason


def test_what_follows_a_body_is_left() -> None:
    reading = Reading(BODY + b"GET /")
    assert reading.pieces == [b"abc", b"0123456789", b"\n"]
    assert reading.reader.is_complete
    assert reading.rest == b"GET /"


def test_reads_may_end_anywhere() -> None:
    for first, second in itertools.combinations(range(1, len(BODY)), 2):
        reading = Reading(BODY[:first], BODY[first:second], BODY[second:])
        assert b"".join(reading.pieces) == b"abc0123456789\n"
        assert reading.reader.is_complete
        assert reading.rest == b""


def test_whole_chunks_are_told_from_others() -> None:
    reading = Reading(b"3\r\nabc\r\n3\r\nabc\r\n")
    assert reading.feed(b"3\r\nabc\r\n")
    assert reading.feed(b"3\r\nabc\r\n3\r\nabc\r\n")
    assert not reading.feed(b"3\r\nabc\r\n3\r\nab")
    assert not reading.feed(b"c\r\n")
    assert reading.feed(b"3\r\nabc\r\n")
    assert not reading.feed(b"3\r\nabc\r\n0\r\n")
    assert not reading.feed(b"\r\n")


def test_what_comes_before_a_size_of_the_next_read_is_no_chunk() -> None:
    """A size without its CRLF must not be measured against bytes of another chunk."""
    Reading(b"4\r\nabcd\r\n2\r\nab\r\n")
    reading = Reading(b"4\r\nabcd\r\n4")
    assert reading.pieces == [b"abcd"]
    reading.feed(b"\r\nwxyz\r\n")
    assert reading.pieces == [b"abcd", b"wxyz"]


def test_after_an_extension_chunks_are_not_passed_as_they_are() -> None:
    reading = Reading(b"3\r\nabc\r\n3;a\r\nabc\r\n")
    assert not reading.feed(b"3\r\nabc\r\n")


@pytest.mark.parametrize(
    "body",
    [b"g\r\n", b"+1\r\na\r\n", b"-1\r\na\r\n", b"0x1\r\na\r\n", b"1_0\r\n", b" 1\r\na\r\n",
     b"1 \r\na\r\n", b"\r\n", b"1\na\r\n", b"1;a\nb\r\na\r\n", b"1;\0\r\na\r\n", b"1\r\nab\r\n",
     b"1\r\na\n\r\n", b"1\r\na\r\r\n", b"1%b\r\n" % (b"0" * 16),
     b"0\r\na b\r\n\r\n", b"0\r\n a: b\r\n\r\n", b"0\r\na: b\nc: d\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_chunk_is_refused_in_one_read_or_many(body: bytes) -> None:
    assert refused(body) == "malformed"
    assert refused(*(bytes([byte]) for byte in body)) == "malformed"
    assert refused(b"1\r\na\r\n" + body) == "malformed"


def test_a_size_line_is_bounded_whether_or_not_it_ends() -> None:
    longest = b"1;" + b"a" * (MAX_SIZE_LINE - 2)
    assert Reading(longest + b"\r\nx\r\n").pieces == [b"x"]
    assert refused(longest + b"a\r\nx\r\n") == "malformed"
    assert refused(longest + b"aa") == "malformed"


def test_the_extensions_of_a_body_are_bounded_together() -> None:
    chunk = b"1;%b\r\na\r\n" % (b"x" * 99)
    most = MAX_EXTENSIONS // 100
    assert len(Reading(chunk * most).pieces) == most
    assert refused(chunk * (most + 1)) == "malformed"


def test_trailers_are_bounded() -> None:
    assert Reading(b"0\r\n" + b"a: b\r\n" * MAX_TRAILER_FIELDS + b"\r\n").reader.is_complete
    assert refused(b"0\r\n" + b"a: b\r\n" * (MAX_TRAILER_FIELDS + 1)) == "headers_too_large"
    line = b"a: " + b"b" * (MAX_TRAILERS // 2)
    assert refused(b"0\r\n", line + b"\r\n", line + b"\r\n") == "headers_too_large"
    assert refused(b"0\r\n", line, line) == "headers_too_large"
