"""Bytes for the client."""

from sidecar.http1.encode import LAST_CHUNK, answer, chunk, status_line


def test_status_lines() -> None:
    assert status_line(200) == b"HTTP/1.1 200 OK\r\n"
    assert status_line(299) == b"HTTP/1.1 299 \r\n"
    assert status_line(742) == b"HTTP/1.1 742 \r\n"


def test_an_empty_chunk_is_none() -> None:
    assert chunk(b"") == b""
    assert chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert LAST_CHUNK == b"0\r\n\r\n"


def test_a_whole_answer() -> None:
    whole = answer(400, b"text/plain", b"no\n", b"a: b\r\n", close=True, head=False)
    assert whole == (
        b"HTTP/1.1 400 Bad Request\r\na: b\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n"
        b"connection: close\r\n\r\nno\n"
    )
    head = answer(400, b"text/plain", b"no\n", b"", close=False, head=True)
    assert head == b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 3\r\n\r\n"
