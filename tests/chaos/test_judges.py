"""Those who judge a storm would notice: each bad answer, one at a time."""

import asyncio

import pytest

from tests.chaos.asks import Ask, Wrong, judge
from tests.chaos.faults import CUT, FAULTS, WHOLE, meant
from tests.chaos.line import Answer, Ended, Line, Unreadable, answer_to

ID = b"1-2-3"
OK = b"HTTP/1.1 200 OK\r\nx-request-id: 1-2-3\r\n"
BAD = b"HTTP/1.1 500 Internal Server Error\r\nx-request-id: 1-2-3\r\n"
INTERNAL = b'x-headgate-reason: internal\r\ncontent-length: 17\r\n\r\n"code":"internal"'


def asked(fault: str = "ok", method: bytes = b"GET", size: int = 100) -> Ask:
    return Ask(ID, FAULTS[fault], FAULTS[fault].outcomes, size, method, b"/v1/models")


def read(data: bytes, method: bytes = b"GET", *, ended: bool = True, reset: bool = False) -> Answer:
    """What a client makes of these bytes."""
    line = Line()
    line.data_received(data)
    if ended:
        line.connection_lost(ConnectionResetError() if reset else None)
    return asyncio.run(answer_to(method, line))


def whole(body: bytes, *fields: bytes) -> Answer:
    return read(OK + b"".join(fields) + b"content-length: %d\r\n\r\n" % len(body) + body)


BODY = meant(ID, b"", 100)


def test_what_was_meant_is_whole() -> None:
    assert judge(asked(), whole(BODY)) == (WHOLE, "")
    chunked = OK + b"transfer-encoding: chunked\r\n\r\n64\r\n%b\r\n0\r\n\r\n" % BODY
    assert judge(asked(), read(chunked)) == (WHOLE, "")
    assert judge(asked(), read(OK + b"\r\n" + BODY)) == (WHOLE, "")
    assert judge(asked(method=b"HEAD"), read(OK + b"content-length: 100\r\n\r\n", b"HEAD")) == (WHOLE, "")


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 100\r\n\r\n" + BODY[:50],
        OK + b"transfer-encoding: chunked\r\n\r\n32\r\n%b\r\n" % BODY[:50],
        OK + b"transfer-encoding: chunked\r\n\r\n64\r\n%b" % BODY[:50],
    ],
    ids=["length", "between chunks", "in a chunk"],
)
def test_half_of_it_is_cut(data: bytes) -> None:
    assert judge(asked("cut_body"), read(data)) == (CUT, "?")
    with pytest.raises(Wrong, match="ended in cut"):
        judge(asked(), read(data))


def test_until_the_end_of_the_connection_only_a_reset_is_a_cut() -> None:
    data = OK + b"\r\n" + BODY[:50]
    assert judge(asked("cut_until_close"), read(data, reset=True)) == (CUT, "?")
    with pytest.raises(Wrong, match="looks complete with 50 of 100 bytes"):
        judge(asked("cut_until_close"), read(data))


def test_a_stream_breaks_off_with_a_word() -> None:
    head = OK + b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    event = b'\n\ndata: {"error":{"message":"m","code":"stalled"}}\n\n'
    cut = head + b"32\r\n%b\r\n" % BODY[:50]
    told = cut + b"%x\r\n%b\r\n" % (len(event), event)
    assert judge(asked("cut_sse"), read(told)) == (CUT, "stalled")
    with pytest.raises(Wrong, match="without a word"):
        judge(asked("cut_sse"), read(cut))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (whole(meant(b"1-2-4", b"", 100)), "looks complete"),
        (whole(meant(ID, b"x", 100)), "looks complete"),
        (whole(BODY + b"x"), "looks complete"),
        (read(b"HTTP/1.1 200 OK\r\nx-request-id: 1-2-4\r\ncontent-length: 0\r\n\r\n"), "is called"),
        (read(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"), "is called"),
        (read(BAD + b"content-length: 0\r\n\r\n"), "status is 500"),
        (read(BAD + INTERNAL), "ended in internal"),
        (whole(b"", b"x-headgate-reason: queue_full\r\n"), "queue_full came with 200"),
        (read(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK + b"content-length: 100\r\n\r\n" + BODY), "before it"),
    ],
)
def test_wrong(answer: Answer, why: str) -> None:
    with pytest.raises(Wrong, match=why):
        judge(asked(), answer)


def test_who_does_not_work_does_not_queue() -> None:
    body = b'{"error":{"code":"queue_full"}}'
    fields = b"x-headgate-reason: queue_full\r\ncontent-length: %d\r\n\r\n" % len(body)
    answer = read(OK.replace(b"200", b"503") + fields + body)
    assert judge(asked(method=b"POST"), answer) == ("queue_full", "queue_full")
    with pytest.raises(Wrong, match="ended in queue_full"):
        judge(asked(), answer)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"poison HTTP/1.1 200 OK\r\n\r\n",
        OK + b"a : b\r\n\r\n",
        OK + b"X-Upper: b\r\n\r\n",
        OK + b"content-length: 1\r\ncontent-length: 1\r\n\r\nx",
        OK + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"transfer-encoding: gzip\r\n\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\nwhat\r\n",
        OK + b"transfer-encoding: chunked\r\n\r\n1\r\nxyz0\r\n\r\n",
    ],
)
def test_unreadable(data: bytes) -> None:
    with pytest.raises(Unreadable):
        read(data)


def test_no_answer() -> None:
    with pytest.raises(Ended):
        read(OK)
