"""An answer of a server as a caller counts it: its head, and when each token came.

1. An event with text (`content`, `reasoning_content`, `text`) is one token, when its bytes were read.
2. Where `usage` says that there were more, as with speculative decoding, they are spread over the events.
3. An answer that is not streamed has all its tokens, as many as `usage` says, at its end.
4. A stream is whole when its last event (`[DONE]`, or a `finish_reason`) and the end of its body are here,
   and no event was an error.
"""

from array import array
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from mesh.bench.retries import read_retry_after
from sidecar.http1.response import ResponseHead, ResponseReader

_DATA: Final = b"data:"
_NEWLINES: Final = 4  # of a chunk with one event of one line: size, event, its end, chunk
_DONE: Final = b"[DONE]"
_QUEUE: Final = "queue;dur="
MOST_UNREAD: Final = 16 * 1024 * 1024  # bytes of one event, or of an answer that is not streamed


class Undecipherable(Exception):
    """What came is no answer of an OpenAI-compatible server."""


class _Text(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class _Choice(msgspec.Struct):
    delta: _Text | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Event).decode


class Answer:
    """What came of one request so far."""

    __slots__ = ("_finished", "_partial", "_streams", "_usage", "failed", "reader", "tokens_at")

    def __init__(self, *, streams: bool) -> None:
        self.reader = ResponseReader()
        self.reader.expect(b"POST")
        self.tokens_at = array("d")
        self.failed = False  # an event was an error
        self._streams = streams
        self._partial = b""
        self._usage = 0
        self._finished = False

    @property
    def head(self) -> ResponseHead | None:
        return self.reader.head

    @property
    def is_whole(self) -> bool:
        return self.reader.complete and self._finished and not self.failed

    def feed(self, data: bytes, now: float) -> bool:
        """Read bytes that came at `now`; whether that was the last of them."""
        reader = self.reader
        if self._streams and not self._partial and (event := _lone_event(reader, data)):
            self._read_event(event, now)
            return False
        reader.feed(data)
        if reader.head is not None:
            if body := reader.take():
                self._read_body(reader.head.status, body, now)
            if reader.complete:
                self._end(now)
                return True
        return False

    def end_of_stream(self, now: float) -> bool:
        """The server closed: True when that is how the answer ends."""
        if self.reader.complete or not self.reader.end_of_stream():
            return self.reader.complete
        self._end(now)
        return True

    def _read_body(self, status: int, body: bytes, now: float) -> None:
        if status >= 300:
            return
        if self._partial:
            body = self._partial + body
        if len(body) > MOST_UNREAD:
            raise Undecipherable("an event or an answer without end")
        if not self._streams:
            self._partial = body
            return
        lines = body.split(b"\n")
        self._partial = lines.pop()
        for line in lines:
            if line.startswith(_DATA):
                self._read_event(line[len(_DATA) :].strip(), now)

    def _read_event(self, data: bytes, now: float) -> None:
        if data.endswith(_DONE):
            self._finished = True
            return
        event = _read(data)
        if event.error is not None:
            self.failed = True
        if event.usage is not None:
            self._usage = event.usage.completion_tokens
        for choice in event.choices:
            piece = choice.delta
            if choice.text or (piece and (piece.content or piece.reasoning_content or piece.reasoning)):
                self.tokens_at.append(now)
            if choice.finish_reason:
                self._finished = True

    def _end(self, now: float) -> None:
        if self._streams:
            self._spread()
        elif self._partial:
            event = _read(self._partial)
            self.failed = event.error is not None
            self._finished = True
            self.tokens_at = array("d", [now]) * (event.usage.completion_tokens if event.usage else 1)
        self._partial = b""

    def _spread(self) -> None:
        events, tokens = len(self.tokens_at), self._usage
        if 0 < events < tokens:
            self.tokens_at = array("d", [self.tokens_at[i * events // tokens] for i in range(tokens)])


def _lone_event(reader: ResponseReader, data: bytes) -> bytes:
    """The data of the one event that `data` is, in a chunk of its own; else nothing.

    So tokens come from most engines, and reading them in general costs several times as much.
    """
    if not data.endswith(b"\n\n\r\n") or data.count(b"\n") != _NEWLINES:
        return b""
    body = reader.whole_chunks(data)
    at = len(data) - body - 2
    return data[at + len(_DATA) : -4] if body and data.startswith(_DATA, at) else b""


def _read(data: bytes) -> _Event:
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        raise Undecipherable(str(error)) from None


class Said:
    """What the fields of a head tell the caller."""

    __slots__ = ("queue_ms", "reason", "retry_after_s", "should_retry")

    def __init__(self, fields: Mapping[str, str]) -> None:
        self.reason = fields.get("x-headgate-reason", "")
        self.retry_after_s = read_retry_after(fields.get("retry-after-ms"), fields.get("retry-after"))
        self.should_retry = {"true": True, "false": False}.get(fields.get("x-should-retry", ""))
        self.queue_ms = _queue_ms(fields.get("server-timing", ""))


def said(head: ResponseHead) -> Said:
    return Said({name.decode("latin-1").lower(): value.decode("latin-1") for name, value in head.fields})


def _queue_ms(timing: str) -> float | None:
    _, found, rest = timing.partition(_QUEUE)
    try:
        return float(rest.partition(",")[0].partition(";")[0]) if found else None
    except ValueError:
        return None
