"""Answers as callers count them: tokens and when they came, and whether all of it is here."""

import json
from typing import Any

import pytest

from mesh.bench import answer as answers
from mesh.bench.answer import Answer, Undecipherable, said
from sidecar.errors import ProtocolError

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(**members: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(members).encode()


def delta(finish: str | None = None, **piece: Any) -> bytes:
    return event(choices=[{"delta": piece, "finish_reason": finish}])


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def length(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


def reading(*pieces: bytes, streams: bool = True) -> Answer:
    """Pieces that came at 0 s, 1 s, 2 s …"""
    read = Answer(streams=streams)
    for second, piece in enumerate(pieces):
        read.feed(piece, float(second))
    return read


def times(read: Answer) -> list[float]:
    return list(read.tokens_at)


WORD = delta(content="word")


def test_each_event_with_text_is_a_token() -> None:
    start, last = delta(role="assistant", content=""), delta("stop")
    read = reading(HEAD + chunk(start), chunk(WORD), chunk(WORD), chunk(last + DONE) + END)
    assert times(read) == [1, 2]
    assert read.is_whole


@pytest.mark.parametrize(
    "members",
    [
        {"choices": [{"delta": {"reasoning_content": "x"}}]},
        {"choices": [{"delta": {"reasoning": "x"}}]},
        {"choices": [{"text": "x"}]},
        {"choices": [{"delta": {"content": "x"}, "finish_reason": "length"}], "usage": None},
    ],
)
def test_text_has_several_names(members: dict[str, Any]) -> None:
    assert times(reading(HEAD, chunk(event(**members)))) == [1]


@pytest.mark.parametrize("members", [{}, {"choices": []}, {"choices": [{"delta": {"content": None}}]}])
def test_events_without_text_are_no_tokens(members: dict[str, Any]) -> None:
    assert times(reading(HEAD, chunk(event(**members)))) == []


def test_any_cut_of_the_bytes_reads_the_same() -> None:
    words = chunk(delta(content="")) + chunk(WORD) + chunk(WORD + WORD)
    sent = HEAD + words + chunk(delta("stop") + DONE) + END
    for cut in range(len(sent)):
        read = reading(sent[:cut], sent[cut:])
        assert len(times(read)) == 3
        assert read.is_whole
    assert len(times(reading(*(bytes([each]) for each in sent)))) == 3


def test_an_event_may_be_cut_by_its_chunks() -> None:
    read = reading(HEAD + chunk(WORD[:20]) + chunk(WORD[20:] + WORD[:20]) + chunk(WORD[20:] + DONE) + END)
    assert len(times(read)) == 2
    assert read.is_whole


def test_a_chunk_may_hold_several_events_or_go_on_with_one() -> None:
    assert times(reading(HEAD, chunk(WORD + WORD), chunk(WORD))) == [1, 1, 2]
    assert times(reading(HEAD, chunk(b": not yet "), chunk(WORD), chunk(WORD))) == [3]  # a comment ends first


@pytest.mark.parametrize(
    "data", [b"data:%b\n\n", b"data:   %b\n\n", b"data: %b\r\n\r\n", b": ping\n\ndata: %b\n\n"]
)
def test_events_are_written_in_several_ways(data: bytes) -> None:
    members = json.dumps({"choices": [{"delta": {"content": "x"}}]}).encode()
    assert times(reading(HEAD, chunk(data % members))) == [1]


def test_more_tokens_than_events_are_spread_over_them() -> None:
    usage = event(choices=[], usage={"completion_tokens": 6})
    read = reading(HEAD, chunk(WORD), chunk(WORD), chunk(WORD), chunk(usage + DONE) + END)
    assert times(read) == [1, 1, 2, 2, 3, 3]


def test_fewer_tokens_than_events_change_nothing() -> None:
    usage = event(choices=[], usage={"completion_tokens": 1})
    assert times(reading(HEAD, chunk(WORD), chunk(WORD), chunk(usage + DONE) + END)) == [1, 2]


@pytest.mark.parametrize(
    "pieces",
    [
        [chunk(WORD)],  # not at its end
        [chunk(WORD), END],  # without a last event
        [chunk(WORD), chunk(DONE)],  # the body goes on
        [chunk(WORD), chunk(event(error={"code": "stalled"})), chunk(DONE) + END],
    ],
)
def test_a_truncated_stream_is_not_whole(pieces: list[bytes]) -> None:
    assert not reading(HEAD, *pieces).is_whole


def test_a_reason_to_finish_is_an_end_too() -> None:
    assert reading(HEAD, chunk(WORD), chunk(delta("stop")), END).is_whole


def test_an_answer_of_one_piece_has_its_tokens_at_its_end() -> None:
    usage = {"completion_tokens": 3}
    sent = length(json.dumps({"choices": [{"message": {"content": "x"}}], "usage": usage}).encode())
    read = reading(sent[:60], sent[60:], streams=False)
    assert times(read) == [1, 1, 1]
    assert read.is_whole


def test_an_answer_may_end_with_its_connection() -> None:
    read = reading(b"HTTP/1.1 200 OK\r\n\r\n" + WORD + DONE)
    assert not read.is_whole
    assert read.end_of_stream(5.0)
    assert read.is_whole
    assert not reading(HEAD + chunk(WORD)).end_of_stream(5.0)
    assert not reading().end_of_stream(5.0)


def test_a_refusal_is_an_end_without_tokens() -> None:
    read = Answer(streams=True)
    assert read.feed(length(b'{"error": {"code": "overloaded"}}', b"503 Service Unavailable"), 0.0)
    assert (read.head and read.head.status, times(read)) == (503, [])


@pytest.mark.parametrize("streams", [True, False])
def test_the_words_of_a_refusal_may_be_any(streams: bool) -> None:
    read = reading(length(b"<html>data: no\ndata: room\n", b"503 Busy"), streams=streams)
    assert read.reader.complete


def test_what_is_no_event_is_told() -> None:
    with pytest.raises(Undecipherable):
        reading(HEAD, chunk(b"data: {half\n\n"))
    with pytest.raises(Undecipherable):
        reading(length(b"<html>"), streams=False)
    with pytest.raises(ProtocolError):
        reading(b"SMTP ready\r\n\r\n")


def test_an_endless_event_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_UNREAD", 1000)
    with pytest.raises(Undecipherable):
        reading(HEAD, *[chunk(b"data: " + b"x" * 600)] * 2)


def test_what_the_fields_say() -> None:
    head = reading(
        b"HTTP/1.1 503 Busy\r\nX-Headgate-Reason: overloaded\r\nretry-after: 2\r\nretry-after-ms: 1500\r\n"
        b"x-should-retry: false\r\nserver-timing: limit;dur=0, queue;dur=12.5, upstream;dur=3\r\n\r\n"
    ).head
    assert head is not None
    words = said(head)
    assert (words.reason, words.retry_after_s, words.should_retry) == ("overloaded", 1.5, False)
    assert words.queue_ms == 12.5


@pytest.mark.parametrize("timing", [b"", b"cache;dur=1", b"queue;dur=x"])
def test_what_they_do_not_say(timing: bytes) -> None:
    head = reading(b"HTTP/1.1 200 OK\r\nserver-timing: %b\r\n\r\n" % timing).head
    assert head is not None
    words = said(head)
    assert (words.reason, words.retry_after_s, words.should_retry, words.queue_ms) == ("", None, None, None)
