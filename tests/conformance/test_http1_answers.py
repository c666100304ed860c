"""Answers: what of them passes, in the client's own framing, and what is no answer at all.

What rule_NN says is in `test_http1_rules`.
"""

from email.utils import format_datetime, formatdate, parsedate_to_datetime
from typing import NamedTuple

import pytest

from tests.conformance.messages import CHUNKED
from tests.harness.engine import SSE, End, answer, chunked, ok
from tests.harness.wire import Client, Wire, get, post


class Passed(NamedTuple):
    name: str
    sent: bytes
    answered: tuple[bytes | End, ...]
    came: bytes


DATE = b"date: Sun, 06 Nov 1994 08:49:37 GMT"
SHARED = (
    b"via: 1.1 headgate\r\nx-request-id: 00000000000000000000000000000001\r\n"
    b"server-timing: limit;dur=0, queue;dur=0.0, upstream;dur=0.0\r\n"
)
CLOSE = b"connection: close\r\n"
HELLO = b"5\r\nhello\r\n"
HEAD = get(method="HEAD")
ONE_0 = get(version="1.0")
LENGTH_0 = b"content-length: 0\r\n"
LENGTH_5 = b"content-length: 5\r\n"
CHUNKS = CHUNKED + b"\r\n"


def dated(status: bytes, body: bytes, *fields: bytes) -> bytes:
    """An answer as most engines give it: with the time."""
    return answer(status, body, DATE, *fields)


def came(line: bytes, framing: bytes, body: bytes = b"", close: bytes = b"") -> bytes:
    """What the client gets of a `dated` answer."""
    return b"HTTP/1.1 %b\r\n%b\r\n%b%b%b\r\n%b" % (line, DATE, framing, SHARED, close, body)


OK = dated(b"200 Fine", b"hello", b"content-length: 5")
EMPTY = dated(b"200", b"", b"content-length: 0")
HINTS = answer(b"103 E", b"", b"link: x")

PASSED = [
    Passed("a length", get(), (OK,), came(b"200 OK", LENGTH_5, b"hello")),
    Passed("no body", get(), (EMPTY,), came(b"200 OK", LENGTH_0)),
    Passed(
        "chunks", get(), (dated(b"200 OK", chunked(b"hello"), CHUNKED),),
        came(b"200 OK", CHUNKS, HELLO + b"0\r\n\r\n"),
    ),
    Passed(
        "chunks in capitals", get(), (dated(b"200 OK", chunked(b"hello"), b"Transfer-Encoding: CHUNKED "),),
        came(b"200 OK", CHUNKS, HELLO + b"0\r\n\r\n"),
    ),
    Passed(
        "no end but the connection's", get(), (dated(b"200 OK", b"hello"), End.CLOSE),
        came(b"200 OK", CHUNKS, HELLO + b"0\r\n\r\n"),
    ),
    Passed("any status", get(), (dated(b"799 Odd", b"", b"content-length: 0"),), came(b"799 ", LENGTH_0)),
    Passed(
        "rule_09: 103", get(), (HINTS + EMPTY,),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + came(b"200 OK", LENGTH_0),
    ),
    Passed(
        "rule_09: one nobody knows", get(), (HINTS.replace(b"103", b"199") + EMPTY,),
        b"HTTP/1.1 199 \r\nlink: x\r\n\r\n" + came(b"200 OK", LENGTH_0),
    ),
    Passed(
        "rule_09: 100 ends here", get(), (answer(b"100 C", b"") * 2 + EMPTY,), came(b"200 OK", LENGTH_0)
    ),
    Passed(
        "rule_09: not to 1.0", ONE_0, (HINTS + EMPTY,), came(b"200 OK", LENGTH_0, close=CLOSE)
    ),
    Passed(
        "rule_10: 103 with a length", get(),
        (HINTS.replace(b"link", b"content-length: 5\r\nlink") + EMPTY,),
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + came(b"200 OK", LENGTH_0),
    ),
    Passed(
        "rule_10: HEAD, a length", HEAD, (dated(b"200 OK", b"", b"content-length: 5"),),
        came(b"200 OK", LENGTH_5),
    ),
    Passed("rule_10: HEAD, chunks", HEAD, (dated(b"200 OK", b"", CHUNKED),), came(b"200 OK", b"")),
    Passed("rule_10: HEAD, neither", HEAD, (dated(b"200 OK", b""),), came(b"200 OK", b"")),
    Passed("rule_10: 204", get(), (dated(b"204 No", b""),), came(b"204 No Content", b"")),
    Passed(
        "rule_10: 204 with a length", get(), (dated(b"204 No", b"", b"content-length: 5"),),
        came(b"204 No Content", b""),
    ),
    Passed(
        "rule_10: 204 of chunks", get(), (dated(b"204 No", b"", CHUNKED),), came(b"204 No Content", b"")
    ),
    Passed("rule_10: 304", get(), (dated(b"304 No", b""),), came(b"304 Not Modified", b"")),
    Passed(
        "rule_10: 304 with a length", get(), (dated(b"304 No", b"", b"content-length: 5"),),
        came(b"304 Not Modified", LENGTH_5),
    ),
    Passed(
        "rule_10: 304 of chunks", get(), (dated(b"304 No", b"", CHUNKED),), came(b"304 Not Modified", b"")
    ),
    Passed("rule_14: 1.0", ONE_0, (OK,), came(b"200 OK", LENGTH_5, b"hello", CLOSE)),
    Passed(
        "rule_14: 1.0 that would stay", get("/", "connection: keep-alive", version="1.0"), (OK,),
        came(b"200 OK", LENGTH_5, b"hello", CLOSE),
    ),
    Passed(
        "rule_14: no chunks to 1.0", ONE_0, (dated(b"200 OK", chunked(b"he", b"llo"), CHUNKED),),
        came(b"200 OK", b"", b"hello", CLOSE),
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", PASSED, ids=lambda case: case.name)
def test_passed(case: Passed) -> None:
    wire = Wire("telemetry: {orca: off}")
    client = wire.client() >> case.sent
    for step in case.answered:
        wire.engine >> step
    client << case.came
    assert client.is_open == (CLOSE not in case.came)
    wire.assert_at_rest()


@pytest.mark.parametrize("framing", [b"content-length: 5", CHUNKED])
@pytest.mark.parametrize(("sent", "line"), [(HEAD, b"200 OK"), (get(), b"204 No"), (get(), b"304 No")])
def test_rule_10_framing_of_what_has_no_body_frames_nothing(sent: bytes, line: bytes, framing: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent
    wire.engine >> answer(line, b"", framing)
    client.received()
    client >> get("/next")
    assert [seen.target for seen in wire.engine.seen] == [b"/", b"/next"]


LONG = b"b" * 300_000

NOT_ANSWERS = {
    "nonsense": b"nonsense\r\n\r\n",
    "rule_07: a switch nobody asked for": answer(b"101 S", b"", b"connection: upgrade", b"upgrade: h2c"),
    "rule_07: a switch to nothing": answer(b"101 S", b""),
    "rule_12: HTTP/2.0": b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n",
    "rule_12: HTTP/1.2": ok().replace(b"HTTP/1.1", b"HTTP/1.2"),
    "rule_12: HTTP/0.9": ok().replace(b"HTTP/1.1", b"HTTP/0.9"),
    "rule_12: RTSP": ok().replace(b"HTTP/1.1", b"RTSP/1.0"),
    "rule_12: ICE": ok().replace(b"HTTP/1.1", b"ICE/1.0"),
    "rule_12: http in lower case": ok().replace(b"HTTP", b"http"),
    "rule_12: no status": b"HTTP/1.1\r\n\r\n",
    "rule_12: 099": answer(b"099 No", b""),
    "rule_12: 000": answer(b"000 No", b""),
    "rule_12: two digits": answer(b"20 No", b"", b"content-length: 0"),
    "rule_12: four digits": answer(b"2000 No", b"", b"content-length: 0"),
    "rule_12: four digits, the first a zero": answer(b"0200 No", b"", b"content-length: 0"),
    "rule_12: a status with a sign": answer(b"+200 No", b"", b"content-length: 0"),
    "rule_12: a status that is none": answer(b"2x0 No", b"", b"content-length: 0"),
    "rule_12: a status and a word in one": answer(b"200OK", b"", b"content-length: 0"),
    "rule_12: two spaces": ok().replace(b"1.1 ", b"1.1  "),
    "rule_12: space before it": b" " + ok(),
    "rule_13: an empty line before it": b"\r\n" + ok(),
    "rule_13: bare LF before it": b"\n" + ok(),
    "rule_13: bare LF": ok().replace(b"\r\n", b"\n"),
    "rule_13: bare LF at the head's end": answer(b"200 OK", b"", b"content-length: 0")[:-2] + b"\n",
    "rule_13: bare CR in the reason": answer(b"200 O\rK", b"", b"content-length: 0"),
    "rule_13: bare CR in a value": answer(b"200 OK", b"", b"content-length: 0", b"a: b\rc: d"),
    "rule_13: NUL in the reason": answer(b"200 \0", b"", b"content-length: 0"),
    "rule_13: a control in the reason": answer(b"200 \x1b[1m", b"", b"content-length: 0"),
    "rule_13: space before the first field": answer(b"200 OK", b"", b" a: b", b"content-length: 0"),
    "rule_18: obs-fold": answer(b"200 OK", b"", b"a: b", b" c", b"content-length: 0"),
    "rule_18: space before the colon": answer(b"200 OK", b"", b"a : b", b"content-length: 0"),
    "rule_18: NUL in a value": answer(b"200 OK", b"", b"a: \0", b"content-length: 0"),
    "rule_18: a control in a value": answer(b"200 OK", b"", b"a: \x07", b"content-length: 0"),
    "rule_18: a name that is no token": answer(b"200 OK", b"", b"a(: b", b"content-length: 0"),
    "rule_18: no colon": answer(b"200 OK", b"", b"a", b"content-length: 0"),
    "rule_19: gzip, chunked": answer(b"200 OK", b"", b"transfer-encoding: gzip, chunked"),
    "rule_19: chunked, gzip": answer(b"200 OK", b"", CHUNKED + b", gzip"),
    "rule_19: gzip": answer(b"200 OK", b"", b"transfer-encoding: gzip"),
    "rule_19: identity": answer(b"200 OK", b"", b"transfer-encoding: identity"),
    "rule_19: nothing": answer(b"200 OK", b"", b"transfer-encoding:"),
    "rule_19: chunked twice": answer(b"200 OK", b"", CHUNKED + b", chunked"),
    "rule_19: chunked repeated": answer(b"200 OK", b"", CHUNKED, CHUNKED),
    "rule_19: gzip beside chunked": answer(b"200 OK", b"", CHUNKED, b"transfer-encoding: gzip"),
    "rule_19: chunked in 1.0": answer(b"200 OK", chunked(b"a"), CHUNKED).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "rule_20: chunked beside a length": answer(b"200 OK", chunked(b"a"), CHUNKED, b"content-length: 1"),
    "rule_20: a length beside chunked": answer(b"200 OK", chunked(b"a"), b"content-length: 1", CHUNKED),
    "rule_21: two that differ": answer(b"200 OK", b"a", b"content-length: 1", b"content-length: 2"),
    "rule_21: repeated": answer(b"200 OK", b"a", b"content-length: 1", b"content-length: 1"),
    "rule_21: a list": answer(b"200 OK", b"a", b"content-length: 1, 1"),
    "rule_21: a sign": answer(b"200 OK", b"a", b"content-length: +1"),
    "rule_21: below 0": answer(b"200 OK", b"a", b"content-length: -1"),
    "rule_21: hex": answer(b"200 OK", b"a", b"content-length: 0x1"),
    "rule_21: a word behind it": answer(b"200 OK", b"a", b"content-length: 1x"),
    "rule_21: empty": answer(b"200 OK", b"", b"content-length:"),
    "rule_21: too large": answer(b"200 OK", b"", b"content-length: 1%b" % (b"0" * 20)),
    "rule_22: a broken chunk": answer(b"200 OK", b"zz\r\n", CHUNKED),
    "rule_28: a long value": answer(b"200 OK", b"", b"a: " + LONG, b"content-length: 0"),
    "rule_28: a long name": answer(b"200 OK", b"", LONG + b": a", b"content-length: 0"),
    "rule_28: a long reason": answer(b"200 " + LONG, b"", b"content-length: 0"),
    "rule_28: a head that does not end": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 50_000,
    "rule_28: a line that does not end": b"HTTP/1.1 200 OK\r\na: " + LONG,
    "rule_28: interim answers without end": answer(b"103 E", b"") * 15_000,
    "rule_30: two content-types": answer(b"200 OK", b"", b"content-type: a/b", b"content-type: a/b"),
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


@pytest.mark.parametrize(
    "begun",
    [b"nonsense", b"\r\n", b"\n", b" ", b"HTTP/2", b"HTTP/1.1 20\r\n", b"HTTP/1.1 200 OK\n",
     b"HTTP/1.1 200 \0", b"HTTP/1.1 200 OK\r\na: b\n", b"HTTP/1.1 200 OK\r\na: b\rc"],
)  # fmt: skip
def test_rule_13_what_cannot_become_an_answer_is_502_at_once(begun: bytes) -> None:
    """Who waits for the end of its line waits until the time-out."""
    wire = Wire()
    client = wire.client() >> get()
    for byte in begun:
        if wire.engine.is_open:
            wire.engine >> bytes([byte])
    assert client.answer().reason == "upstream_protocol"


@pytest.mark.parametrize("reason", [b"", b" ", b" OK", b" \xe9\t\xff", b" a  b "])
def test_rule_12_the_reason_phrase_is_ours(reason: bytes) -> None:
    """RFC 9112 section 4: clients should ignore it; a proxy that copies it copies what is in it."""
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> b"HTTP/1.1 404%b\r\ncontent-length: 0\r\n\r\n" % reason
    assert client.received().startswith(b"HTTP/1.1 404 Not Found\r\n")


def test_an_engines_word_in_the_meshs_name_never_reaches_the_client() -> None:
    wire = Wire()
    client = wire.client() >> get()
    own = b"server-timing: gpu;dur=1"
    wire.engine >> answer(b"103 E", b"", b"x-headgate-reason: a", b"link: x")
    wire.engine >> ok(b"", b"X-Headgate-Elsewhere: 1", b"x-headgate-reason: a", b"x-headgate-: a", own)
    back = client.answer()
    assert back.interim == [(103, [(b"link", b"x")])]
    assert not any(name.startswith(b"x-headgate-") for name, _ in back.fields)
    timings = [value for name, value in back.fields if name == b"server-timing"]
    assert timings == [b"gpu;dur=1", b"limit;dur=0, queue;dur=0.0, upstream;dur=0.0"]


# The time (RFC 9110 section 6.6.1).

REFUSALS = {
    "malformed": b"nonsense\r\n\r\n",
    "forbidden": get("/sleep"),
    "of an openai path": get("/v1/models", "expect: x"),
    "of HEAD": get("/sleep", method="HEAD"),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("later", [0.0, 86_400.0])
def test_date_is_in_what_we_say_ourselves(later: float, name: str) -> None:
    wire = Wire()
    wire.clock.advance(later)
    client = wire.client() >> REFUSALS[name]
    assert_now(wire, client.answer(b"HEAD" if name == "of HEAD" else b"GET")[b"date"])


def assert_now(wire: Wire, date: bytes) -> None:
    assert date.decode() == formatdate(int(wire.clock.wall()), usegmt=True)
    # As a fixdate, which a day or hour of one digit would not be.
    assert date.decode() == format_datetime(parsedate_to_datetime(date.decode()), usegmt=True)


def test_date_is_the_engines_where_it_has_one() -> None:
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> OK
    assert client.answer()[b"date"] == DATE[6:]


def test_date_is_added_where_the_engine_has_none() -> None:
    """A recipient with a clock must append it to what it forwards."""
    wire = Wire()
    client = wire.client() >> get()
    wire.engine >> ok()
    assert_now(wire, client.answer()[b"date"])


# Answers that break off: none may look complete (rule_23).


def broken(config: str, sent: bytes, *steps: bytes | End) -> tuple[Wire, Client]:
    wire = Wire(config)
    client = wire.client() >> sent
    for step in steps:
        wire.engine >> step
    return wire, client


@pytest.mark.parametrize("end", End)
def test_rule_23_an_event_stream_ends_with_an_error_and_no_last_chunk(end: End) -> None:
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
def test_rule_23_other_chunked_answers_lack_their_last_chunk(head: bytes, end: bytes | End) -> None:
    _, client = broken("", post(), head + b"1\r\na\r\n", end)
    assert client.received().endswith(b"\r\n\r\n1\r\na\r\n")
    assert not client.is_open


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("end", End)
def test_rule_23_a_counted_answer_is_cut_short(end: End, version: str) -> None:
    _, client = broken("", get(version=version), ok(b"hello")[:-1], end)
    cut = client.answer()
    assert (cut.body, cut.complete) == (b"hell", False)
    assert client.transport.closing


def test_rule_23_where_the_connection_is_the_end_it_is_reset() -> None:
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
