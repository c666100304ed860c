"""Chunks and trailers, both ways: read by the letter, bounded, and never passed on as they came.

What rule_NN says is in `test_http1_rules`.
"""

import pytest

from tests.conformance.messages import CHUNKED
from tests.harness.engine import answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post_chunked, read_answer

PATHS = pytest.mark.parametrize("path", [CHAT, "/upload"])  # held whole, and streamed through
BEGUN = answer(b"200 OK", b"", CHUNKED) + chunked(b"{", last=False)
END = b"0\r\n\r\n"  # so that nothing else is wrong with a body
KIB = 1024

CHUNK_ERRORS = {
    "no size": b"\r\n",
    "no size but an extension": b";a\r\n\r\n",
    "a size that is none": b"g\r\n",
    "a size with a sign": b"+1\r\na\r\n",
    "a size below 0": b"-1\r\na\r\n",
    "a size with 0x": b"0x1\r\na\r\n",
    "a size with _": b"1_0\r\n" + b"a" * 16 + b"\r\n",
    "a size with a space": b" 1\r\na\r\n",
    "a size after which is space": b"1 \r\na\r\n",
    "a size after which is a tab": b"1\t\r\na\r\n",
    "a size that overflows": b"1" + b"0" * 16 + b"\r\n",
    "a size that overflows by far": b"f" * 300 + b"\r\n",
    "a size of more digits than any number has": b"0" * 20 + b"1\r\na\r\n",
    "a last size with a sign": b"-0\r\n\r\n",
    "a bare LF after a size": b"1\na\r\n",
    "a bare CR after a size": b"1\ra\r\n",
    "a bare LF in an extension": b"1;a=b\n\r\na\r\n",
    "a bare CR in an extension": b"1;a=b\rc\r\na\r\n",
    "a bare LF in quotes": b'1;a="\n"\r\na\r\n',
    "NUL in an extension": b"1;a=\0\r\na\r\n",
    "data longer than its size": b"1\r\nab\r\n",
    "data shorter than its size": b"3\r\na\r\n0\r\n\r\n",
    "no end after data": b"1\r\na0\r\n\r\n",
    "two other bytes after data": b"1\r\naxx0\r\n\r\n",
    "two LF after data": b"1\r\na\n\n0\r\n\r\n",
    "CR and another byte after data": b"1\r\na\rx0\r\n\r\n",
    "a bare LF after data": b"1\r\na\n0\r\n\r\n",
    "a bare CR after data": b"1\r\na\r0\r\n\r\n",
    "a bare LF after the last size": b"0\n\r\n",
    "a bare LF at the end": b"0\r\n\n",
    "a bare CR at the end": b"0\r\n\rx",
    "a trailer that is none": b"0\r\na b\r\n\r\n",
    "a trailer without a name": b"0\r\n: b\r\n\r\n",
    "space before a trailer's colon": b"0\r\na : b\r\n\r\n",
    "a bare LF in the trailers": b"0\r\na: b\n\r\n",
    "a bare CR in a trailer": b"0\r\na: b\rc: d\r\n\r\n",
    "NUL in a trailer": b"0\r\na: \0\r\n\r\n",
    "obs-fold in the trailers": b"0\r\na: b\r\n c\r\n\r\n",
}


@PATHS
@pytest.mark.parametrize("name", CHUNK_ERRORS)
def test_rule_22_a_broken_chunk(name: str, path: str) -> None:
    refused(path, CHUNK_ERRORS[name] + END, 400, "malformed")


def refused(path: str, rest: bytes, status: int, reason: str) -> None:
    """A request whose body goes on with `rest` is answered so, and never looks whole to an engine."""
    wire = Wire()
    client = wire.client() >> post_chunked(path, b"{", last=False) >> rest + get("/smuggled")
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (status, reason)
    assert not client.is_open
    assert client.received() == b""
    assert all(engine.aborted and not engine.seen[-1].complete for engine in wire.engines)
    assert len(wire.engines) == (path != CHAT)
    wire.assert_at_rest()


@pytest.mark.parametrize("name", CHUNK_ERRORS)
def test_rule_22_an_engines_broken_chunk(name: str) -> None:
    broken_off(CHUNK_ERRORS[name] + END)


def broken_off(rest: bytes) -> None:
    """An answer that has begun and goes on with `rest` ends without looking whole."""
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> BEGUN >> rest + ok(b"poison")
    came, over = client.answer(), client.transport.closing
    assert (came.status, came.body[:1], came.complete, over) == (200, b"{", False, True)
    assert not wire.engine.is_open
    assert wire.record.reason == "upstream_protocol"
    wire.assert_at_rest()


HOPELESS = [
    b"1\n", b"1;a\n", b"1;a\rb", b"1;a\0", b"1\r\na\n", b"0\r\n\n", b"0\r\na: b\n", b"0\r\na: \0",
    b"0\r\n\rx",
]  # fmt: skip


@PATHS
@pytest.mark.parametrize("rest", HOPELESS)
def test_rule_22_what_cannot_become_a_chunk_is_refused_at_once(rest: bytes, path: str) -> None:
    """Who waits for the end of its line waits for ever."""
    wire = Wire()
    client = wire.client() >> post_chunked(path, b"{", last=False)
    for byte in rest:
        client >> bytes([byte])
    assert client.answer(b"POST").status == 400
    wire.assert_at_rest()


@pytest.mark.parametrize("rest", HOPELESS)
def test_rule_22_nor_is_an_engine_waited_for(rest: bytes) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> BEGUN
    for byte in rest:
        if wire.engine.is_open:
            wire.engine >> bytes([byte])
    assert not client.answer().complete
    assert wire.engine.aborted
    wire.assert_at_rest()


SIZES = {
    "capitals": (b"A\r\n" + b"a" * 10 + b"\r\n0\r\n\r\n", b"a" * 10),
    "leading zeros": (b"0001\r\na\r\n000\r\n\r\n", b"a"),
    "extensions": (b'1;a\r\na\r\n2;a=b;c="d;\xe9 e"\r\nbc\r\n0;last\r\n\r\n', b"abc"),
    "a long one": (b"1;" + b"a" * (4 * KIB - 8) + b"\r\na\r\n0\r\n\r\n", b"a"),
    "many small ones": ((b"1;" + b"a" * 100 + b"\r\na\r\n") * 150 + b"0\r\n\r\n", b"a" * 150),
    "what looks like the end": (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
}


@PATHS
@pytest.mark.parametrize("name", SIZES)
def test_rule_22_sizes_and_extensions(name: str, path: str) -> None:
    """Extensions are for the next hop alone (RFC 9112 section 7.1.1): ignored, and not passed on."""
    sent, body = SIZES[name]
    wire = Wire()
    client = wire.client() >> post_chunked(path, last=False) + sent + get("/next")
    assert b";a" not in wire.engine.sent()
    seen = wire.engine.request()
    assert (seen.body, seen.complete) == (body, True)
    wire.engine >> answer(b"200 OK", sent, CHUNKED)
    came = client.received()
    assert b";a" not in came
    assert read_answer(came, b"POST")[0].body == body
    assert wire.engine.request().target == b"/next"


@PATHS
@pytest.mark.parametrize(
    "rest",
    [
        b"1;" + b"a" * 4 * KIB + b"\r\na\r\n" + END,
        b"1;" + b"a" * 5 * KIB,
        b"0" * 5 * KIB + b"\r\n\r\n",
        b"0" * 5 * KIB,
        (b"1;" + b"a" * 100 + b"\r\na\r\n") * 170 + END,
        b"1;" + b"a" * 2 * KIB + b"\r\na\r\n" + (b"1;a\r\na\r\n") * 16 * KIB + END,
    ],
    ids=["a line", "a line that does not end", "zeros", "zeros that do not end", "their sum", "many"],
)
def test_rule_22_extensions_are_bounded(rest: bytes, path: str) -> None:
    """4 KiB for a line of a size, 16 KiB for all extensions of one body."""
    refused(path, rest, 400, "malformed")


def test_rule_22_the_bound_is_one_bodys() -> None:
    wire = Wire()
    client = wire.client()
    for _ in range(3):
        chunks = (b"1;" + b"a" * 100 + b"\r\na\r\n") * 100
        client >> post_chunked("/upload", last=False) + chunks + b"0\r\n\r\n"
        wire.engine >> ok()
        assert client.answer(b"POST").status == 200


# Trailers.

FORBIDDEN = [
    b"Host: evil", b"Content-Length: 9", b"Transfer-Encoding: gzip", b"transfer-encoding: chunked",
    b"Connection: close", b"Upgrade: h2c", b"Authorization: Bearer x", b"X-Headgate-Hop: 1", b"Expect: x",
    b"x-priority: premium", b"content-type: a/b", b"content-encoding: gzip", b"Cache-Control: no-store",
    b"max-forwards: x", b"trailer: a", b"x-request-id: y", b"te: trailers", b"content-length: x",
    b"X-Fine: z",
]  # fmt: skip


@PATHS
@pytest.mark.parametrize("field", [b"\r\n".join(FORBIDDEN), *FORBIDDEN])
def test_rule_11_trailers_end_here(field: bytes, path: str) -> None:
    wire = Wire()
    client = sending(wire, path, field + b"\r\n") >> get("/next")
    seen = wire.engine.request()
    assert (seen.body, seen.complete, seen[b"host"]) == (b"{}", True, b"a")
    assert {name for name, _ in seen.fields} == {
        b"host", b"content-length" if path == CHAT else b"transfer-encoding", b"via", b"x-forwarded-for",
        b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id",
    }  # fmt: skip
    wire.engine >> ok()
    assert client.answer(b"POST").status == 200
    assert wire.engine.request().target == b"/next"


def sending(wire: Wire, path: str, trailers: bytes) -> Client:
    return wire.client() >> post_chunked(path, b"{}", last=False) + b"0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize("field", [b"\r\n".join(FORBIDDEN), *FORBIDDEN])
def test_rule_11_an_engines_trailers_end_here(field: bytes) -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> answer(b"200 OK", b"", CHUNKED, b"trailer: x-fine", b"date: z")
    head = client.received()
    assert b"trailer" not in head
    wire.engine >> b"2\r\n{}\r\n0\r\n" + field + b"\r\n\r\n"
    client << b"2\r\n{}\r\n0\r\n\r\n"
    client >> get("/next")
    assert [seen.target for seen in wire.engine.seen] == [b"/", b"/next"]


@PATHS
@pytest.mark.parametrize(
    "trailers",
    [b"a: b\r\n" * 101, b"a: " + b"b" * 64 * KIB + b"\r\n", (b"a: " + b"b" * 1024 + b"\r\n") * 64],
    ids=["fields", "a field", "their sum"],
)
@pytest.mark.parametrize("end", [b"\r\n", b""])
def test_rule_28_trailers_are_bounded(end: bytes, trailers: bytes, path: str) -> None:
    refused(path, b"0\r\n" + trailers + end, 431, "headers_too_large")


@PATHS
def test_rule_28_as_many_trailers_as_are_allowed_are_read(path: str) -> None:
    wire = Wire()
    sending(wire, path, (b"a: " + b"b" * 640 + b"\r\n") * 100)
    assert wire.engine.request().complete


@pytest.mark.parametrize(
    "rest",
    [
        b"0\r\na: " + b"b" * 300 * KIB + b"\r\n\r\n",
        b"0\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
        b"1;" + b"a" * 300 * KIB + b"\r\na\r\n0\r\n\r\n",
    ],
    ids=["a trailer", "trailers", "an extension"],
)
def test_rule_28_what_an_engine_sends_beside_the_body_is_bounded(rest: bytes) -> None:
    broken_off(rest)
