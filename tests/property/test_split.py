"""How bytes are cut into reads changes nothing: neither what the engine sees nor what the client gets.

Chunks may be cut elsewhere when they are passed on, so what is compared is what h11 reads. Two
things do depend on the reads, and are not in the table: whether an engine's answer that is
malformed further on has begun for the client, and whether a refused request was whole, so that
the connection can live on.
"""

import functools
from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness.engine import SSE, End, Seen, answer, chunked, ok
from tests.harness.wire import CHAT, Answer, Client, Wire, get, post, post_chunked, read_answer

Steps = tuple[bytes | End, ...]


class Case(NamedTuple):
    """What a client sends, and how the engine answers each of its requests."""

    name: str
    sent: bytes
    answers: tuple[Steps, ...]
    methods: tuple[bytes, ...] = (b"GET",)


CHUNKED = b"transfer-encoding: chunked"
BODY = b'{"model": "m", "stream": true}'
EVENTS = (b"data: one\n\n", b"data: two\n\ndata: three\n\n", b"data: [DONE]\n\n")
GZIP = answer(b"200 OK", b"", b"content-type: text/event-stream", b"content-encoding: gzip", CHUNKED)
POST = (b"POST",)
HINTS = answer(b"103 Early Hints", b"", b"link: a") + answer(b"100 Continue", b"") + answer(b"102 P", b"")
HEAD = get(method="HEAD")
H2C = get("/", "connection: upgrade", "upgrade: h2c")

CASES = [
    Case("get", get("/a?b", "x: 1", "x: 2"), ((ok(b"hello", b"a: b"),),)),
    Case("no answer", get(), ((b"", End.CLOSE),)),
    Case("reset in the head", get(), ((b"HTTP/1.1 200 OK\r\ncontent-length: 5", End.RESET),)),
    Case("content-length", post(CHAT, BODY), ((ok(b"{}"),),), POST),
    Case("buffered chunks", post_chunked(CHAT, BODY[:9], BODY[9:]), ((ok(b"{}"),),), POST),
    Case("streamed chunks", post_chunked("/upload", b"ab", b"c" * 300, b"\r\n0\r\n\r\n"), ((ok(),),), POST),
    Case("streamed length", post("/upload", b"abc" * 50), ((ok(b"x"),),), POST),
    Case("trailers", post_chunked("/upload", b"a")[:-2] + b"x: y\r\n\r\n", ((ok(),),), POST),
    Case(
        "pipelined",
        b"".join([get("/1"), post(CHAT, BODY), b"\r\n", post_chunked("/3", b"x"), HEAD, get("/5")]),
        ((ok(b"1"),), (SSE + chunked(*EVENTS),), (ok(),), (ok(b"")[:-3] + b"9\r\n\r\n",), (ok(b"5"),)),
        (b"GET", b"POST", b"POST", b"HEAD", b"GET"),
    ),
    Case("pipelined and closed", get("/1", "connection: close") + get("/2"), ((ok(b"1"),),)),
    Case("head", HEAD, ((answer(b"200 OK", b"", b"content-length: 9"),),), (b"HEAD",)),
    Case("head of chunks", HEAD, ((answer(b"200 OK", b"", CHUNKED),),), (b"HEAD",)),
    Case("204", get(), ((answer(b"204 None", b"", b"a: b"),),)),
    Case("304", get(), ((answer(b"304 Same", b"", b"content-length: 9"),),)),
    Case("interim", get(), ((HINTS + ok(b"late"),),)),
    Case("expect", get(CHAT, "expect: 100-continue", "content-length: 2", method="POST"), (), POST),
    Case("close-delimited", get(), ((answer(b"200 OK", b"abc" * 20), End.CLOSE),)),
    Case("sse", post(CHAT, BODY), ((SSE + chunked(*EVENTS),),), POST),
    Case("sse broken", post(CHAT, BODY), ((SSE + chunked(*EVENTS[:2], last=False), End.RESET),), POST),
    Case("gzip broken", post(CHAT, BODY), ((GZIP + chunked(*EVENTS, last=False), End.CLOSE),), POST),
    Case("length broken", get(), ((ok(b"hello")[:-1], End.CLOSE),)),
    Case("1.0", get(version="1.0"), ((ok(b"hello"),),)),
    Case("1.0 chunked", post(version="1.0"), ((SSE + chunked(*EVENTS),),), POST),
    Case("1.0 close-delimited", get(version="1.0"), ((answer(b"200 OK", b"abc"), End.CLOSE),)),
    Case("refused", get() + b"GET / HTTP/1.1\r\nhost : a\r\n\r\n" + get(), ((ok(b"1"),),), (b"GET", b"GET")),
    Case("version", get(version="1.2"), ()),
    Case("chunk refused", get() + post_chunked(CHAT, BODY, last=False) + b"zz\r\n", ((ok(b"1"),),), POST * 2),
    Case("h2c", H2C + get() + H2C, ((ok(b"1"),), (ok(b"2"),), (ok(b"3"),)), (b"GET",) * 3),
]


class Outcome(NamedTuple):
    seen: list[Seen]
    answers: list[Answer]
    open: bool
    reset: bool
    records: list[tuple[int, str, int, int]]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    at = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(at)]


def outcome(case: Case, ours: list[int], theirs: list[int]) -> Outcome:
    """What happens when the client's bytes are cut at `ours`, and the engine's at `theirs`."""
    answers = iter(case.answers)

    def script(seen: Seen) -> list[bytes | End]:
        steps: list[bytes | End] = []
        for step in next(answers):
            steps.extend(cut(step, theirs) if isinstance(step, bytes) else [step])
        return steps

    wire = Wire(script=script)
    client = wire.client()
    for piece in cut(case.sent, ours):
        client >> piece
    if case.name != "expect":
        wire.assert_at_rest()
    return Outcome(
        [seen for engine in wire.engines for seen in engine.seen],
        read_all(client, case.methods),
        client.is_open,
        client.was_reset,
        [(r.status, r.reason, r.bytes_in, r.bytes_out) for r in wire.receipts.last(100)],
    )


def read_all(client: Client, methods: tuple[bytes, ...]) -> list[Answer]:
    data, answers = client.received(), []
    for method in methods:
        answer, data = read_answer(data, method, ended=client.is_over)
        answers.append(answer)
    assert data == b"", "more came than was asked for"
    return answers


@functools.cache
def uncut(case: Case) -> Outcome:
    return outcome(case, [], [])


PLACES = st.lists(st.integers(0, 2000), max_size=12)


@settings(max_examples=5 * settings.default.max_examples)
@given(case=st.sampled_from(CASES), ours=PLACES, theirs=PLACES)
def test_cuts_change_nothing(case: Case, ours: list[int], theirs: list[int]) -> None:
    assert outcome(case, ours, theirs) == uncut(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_neither_do_single_bytes(case: Case) -> None:
    everywhere = list(range(2000))
    assert outcome(case, everywhere, everywhere) == uncut(case)
