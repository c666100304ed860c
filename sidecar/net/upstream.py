"""A connection to an engine: one exchange at a time out, its answer back as it comes.

While it carries an exchange: no first token within `first_byte_s` of the last byte sent, a body not taken
for as long, or no further token for `stall_s`, ends it. Comments that keep a connection alive are no tokens.
While it is idle any byte from the engine discards it, so that nobody gets an answer to another's question.

An attempt that fails before its first token may find another place (`Pipeline.recovers`): so does one whose
first token takes longer than the engine ever does (`Context.patience_s`).
"""

from __future__ import annotations

import asyncio
import logging
from math import inf
from typing import TYPE_CHECKING, Final, cast

from sidecar.balance.orca import FIELD, read_report
from sidecar.errors import (
    FIRST_TOKEN_TIMEOUT,
    FORBIDDEN,
    INTERNAL,
    NO_ENDPOINT,
    REASONS,
    STALLED,
    UPSTREAM_RESET,
    ProtocolError,
    Refusal,
)
from sidecar.exchange import Exchange, Reply
from sidecar.http1.encode import LAST_CHUNK, chunk
from sidecar.http1.response import ResponseReader
from sidecar.llm.tokens import has_token, is_keep_alive
from sidecar.net.answers import interim_head
from sidecar.net.requests import request_head
from sidecar.net.sockets import pause_at_once, read_little

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
    from sidecar.http1.response import ResponseHead
    from sidecar.net.context import Context
    from sidecar.net.timers import Timer

_SAFE: Final = (b"GET", b"HEAD", b"OPTIONS")  # RFC 9110 section 9.2.1
_EVENT: Final = b"data:"  # once in each event, however its lines end, and in no comment
_USAGE: Final = b'"usage"'
_TAIL: Final = 4096  # bytes at the end of a piece in which it is looked for
_MOST_EARLY: Final = 64 * 1024  # bytes before a first token: a stream may say what we do not know
_LATE: Final = 2.0
_HELD_S: Final = 15.0  # what comes before a first token, where the request could go nowhere else anyway
_LONGEST_REFUSAL: Final = 300  # seconds
_OURS: Final = {reason.encode(): reason for reason in REASONS}
_OTHER: Final = "other"  # in the words of a newer peer
_EMPTY: Final = "empty_stream"
_BACK_PRESSURE: Final = (b"x-headgate-reason", b"retry-after", b"x-envoy-overloaded")
_STATUS: Final = "status"
_JOINED_UP_TO: Final = 16 * 1024  # below this one copied write is cheaper than two buffers

log = logging.getLogger("headgate.upstream")


class Upstream(asyncio.Protocol):
    """One connection to `endpoint`. Its owner is told when it can be used again, and when it is gone."""

    __slots__ = (
        "_begun",
        "_congested",
        "_context",
        "_early",
        "_head_seen",
        "_heard",
        "_paused",
        "_reader",
        "_streams",
        "_timer",
        "_transport",
        "_x",
        "endpoint",
        "idle_since",
    )

    _transport: asyncio.Transport
    _timer: Timer

    def __init__(self, context: Context, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.idle_since = 0.0
        self._context = context
        self._reader = ResponseReader()
        self._x: Exchange | None = None
        self._begun = False  # the answer has, though its head is not whole
        self._head_seen = False
        self._early = b""  # what came of the answer before its first token
        self._streams = False  # the request's body is sent as it comes
        self._congested = False  # the engine does not take what is sent
        self._paused = False  # what it sends is not read, for the client's sake
        self._heard = 0.0

    @property
    def is_usable(self) -> bool:
        """Open, and carrying nothing."""
        return self._x is None and not self._transport.is_closing()

    @property
    def has_left(self) -> bool:
        """The engine has closed its side, though the event loop may not have heard of it. A system call."""
        return self._transport.is_closing() or self._context.has_left(self._transport)

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        pause_at_once(self._transport)
        read_little(self._transport)
        self._timer = self._context.timers.after(self._every(), self._check, None)

    def data_received(self, data: bytes) -> None:
        x = self._x
        if x is None:
            self._transport.abort()
            return
        reader = self._reader
        if self._head_seen:  # until then nothing that comes ends the wait for it
            if not x.stream or _EVENT in data or not is_keep_alive(data):
                self._heard = self._context.clock.now()
            if x.client.takes_chunks and not x.pipeline.sees_data:
                length = reader.whole_chunks(data)
                if length:
                    if x.is_work:
                        _count(x, data)
                    x.client.pass_on(x, data, length)
                    return
        if self._read(x, data):
            self._pass_on(x)

    def _pass_on(self, x: Exchange) -> None:
        """What was read, through the stages to the client."""
        reader = self._reader
        body = reader.take()
        if body and x.is_work:
            _count(x, body)
        head = None
        if not self._head_seen:
            if self._early:
                body = self._early + body
            head = self._head(x, body)
            if head is None:
                self._early = body
                return
            self._early = b""
        if body and x.pipeline.sees_data and not x.pipeline.data(x, body):
            return
        if reader.complete:
            self._detach(head or reader.head)
            x.client.relay(x, head, body, True)
        else:
            x.client.relay(x, head, body, False)

    def _read(self, x: Exchange, data: bytes) -> bool:
        """False: it cannot be read, and `x` was ended."""
        try:
            self._reader.feed(data)
        except ProtocolError as error:
            self._context.complaints.warn(self.endpoint.name, str(error))
            body = self._reader.take()
            if self._head_seen and body:
                x.client.relay(x, None, body, False)  # what came before the fault is the answer's
            self._fail(error.refusal)
        except Exception:
            log.exception("reading the answer of %s failed", self.endpoint.name)
            self._fail(INTERNAL)
        else:
            return True
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._context.connections.lost(self)
        x = self._x
        if x is None:
            return
        if exc is None and self._reader.end_of_stream():
            head, body = None, b""
            if not self._head_seen:  # it waited for a token, and there is none
                body = self._early
                head = self._head(x, body)
                if head is None:
                    return
            self._release()
            x.client.relay(x, head, body, True)
        elif self._may_repeat(x):
            log.debug("%s: an idle connection had ended", self.endpoint.name)
            self._release()
            self._context.connections.send_afresh(x)
        else:
            self._fail(UPSTREAM_RESET)

    def pause_writing(self) -> None:
        self._congested = True
        if self._x is not None and self._streams:
            self._heard = self._context.clock.now()
            self._x.client.read_on(False)

    def resume_writing(self) -> None:
        self._congested = False
        if self._x is not None and self._streams:
            self._x.client.read_on(True)

    # The request out.

    def send(self, x: Exchange) -> bool:
        """Carry `x`. False: this connection was idle and has ended, and not a byte of `x` was taken."""
        transport = self._transport
        if self.idle_since and transport.is_closing():
            return False
        self._x = x
        x.upstream = self
        self._begun = self._head_seen = False
        self._early = b""
        self._heard = x.dispatched
        self._reader.expect(x.request.method)
        if x.client.is_congested:
            self.pause()
        body = x.body
        head = request_head(x, self.endpoint, self._context)
        self._streams = body is None
        if body is None:
            if not x.request.complete:
                x.client.read_on(True)
            transport.write(b"".join(head))
            self.send_more()
            return True
        if len(body) <= _JOINED_UP_TO:
            head.append(body)
            transport.write(b"".join(head))
        else:
            transport.writelines((b"".join(head), body))
        if self.idle_since and transport.is_closing():  # the very first write failed
            self._release()
            return False
        return True

    def send_more(self) -> None:
        """Pass on what has come of a body that streams through."""
        x = self._x
        if x is None or not self._streams:
            return
        request = x.request
        data = request.take_body()
        if request.length is None:
            data = chunk(data)
            if request.complete:
                data += LAST_CHUNK
        if request.complete:
            self._heard = self._context.clock.now()  # the engine's time begins
            self._streams = False  # first: how slowly the engine takes the rest is not the client's matter
        if data:
            self._transport.write(data)

    # The answer back.

    def _head(self, x: Exchange, body: bytes) -> ResponseHead | None:
        """The head, if it is here now and the stages let it pass; `body` is all that came of the answer.

        That of a stream waits for the first token: until then the request may still go elsewhere, and a
        failure gets an answer of its own.
        """
        reader = self._reader
        for interim in reader.interim:
            if interim.status != 100:  # we answer 100 ourselves
                x.client.interim(x, interim_head(interim))
        reader.interim.clear()
        head = reader.head
        if head is None:
            self._begun = True
            return None
        ends = reader.complete or self._transport.is_closing()
        if x.stream and head.status == 200:
            begins = _begins(head, body)
            if not begins and not ends:
                self._begun = True
                return None
            failure = "" if begins else _EMPTY
        else:
            is_ill = head.status >= 500 or (self.endpoint.is_peer and head.status == 429)
            failure = _STATUS if is_ill or self._is_stranger(head) else ""
        if failure and self._goes_elsewhere(x, head, failure):
            return None
        if failure and self._is_stranger(head):
            self.abandon()
            x.pipeline.refuse(x, Reply(NO_ENDPOINT, retry_after_s=self._context.clock.jitter(1.0, 0.2)))
            return None
        self._head_seen = True
        self._heard = self._context.clock.now()
        x.responded = self._heard
        x.status = head.status
        noted = head.noted
        if self.endpoint.is_peer and b"x-headgate-reason" in noted:
            x.reason = _OURS.get(noted[b"x-headgate-reason"], _OTHER)  # it becomes a label
        if FIELD in noted:
            self._hear(noted[FIELD])
        return head if x.pipeline.response(x) else None

    def _is_stranger(self, head: ResponseHead) -> bool:
        """The peer has another key than we, for a while or by mistake: no matter of the caller's."""
        return self.endpoint.is_peer and head.noted.get(b"x-headgate-reason") == FORBIDDEN.reason.encode()

    def _goes_elsewhere(self, x: Exchange, head: ResponseHead, failure: str) -> bool:
        """Another place is found for `x`, and what came of this answer is forgotten."""
        noted = head.noted
        x.refused_by = next((noted[name] for name in _BACK_PRESSURE if name in noted), b"")
        returns = noted.get(b"retry-after", b"")
        x.refused_for = float(min(int(returns[:9]), _LONGEST_REFUSAL)) if returns.isdigit() else 0.0
        x.upstream = None  # its next attempt may begin at once
        if not x.pipeline.recovers(x, failure, head.status):
            x.upstream = self
            return False
        self._x = None
        self._transport.abort()
        return True

    def _hear(self, value: bytes) -> None:
        """The engine says how full it is."""
        report = read_report(value, self._heard)
        if report is not None:
            self.endpoint.load.hear(report)

    def pause(self) -> None:
        """The client is slow: let the engine feel it."""
        if not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """The client has caught up."""
        if not self._transport.is_closing():
            self._paused = False
            self._heard = self._context.clock.now()
            self._transport.resume_reading()

    # Ends.

    def abandon(self) -> None:
        """Whoever asked has gone: the engine learns it at once."""
        self._release()
        self._transport.abort()

    def adopt(self, x: Exchange) -> None:
        """The answer under way is that of `x`."""
        self._x = x
        x.upstream = self

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def _detach(self, head: ResponseHead | None) -> None:
        """The answer is whole: the connection is free, or of no more use."""
        taken = not self._streams and not self._congested
        self._release()
        if not taken:
            self._transport.abort()  # close() would wait for the engine to take the rest
        elif head is not None and head.keep_alive and not self._reader.excess:
            self.idle_since = self._heard
            if self._paused:
                self.resume()  # for whoever is next
            self._context.connections.idle(self)
        else:
            self._transport.close()

    def _fail(self, refusal: Refusal) -> None:
        x = self._x
        assert x is not None
        self._release()
        self._transport.abort()
        if self._head_seen:
            x.pipeline.refuse(x, Reply(refusal))
        else:
            x.pipeline.fail(x, Reply(refusal))

    def _is_over(self, x: Exchange, silence: float, now: float) -> bool:
        """Nothing more is to be waited for.

        An answer that comes whole is silent until it is done: that may take as long as what was asked for.
        """
        if self._streams and not self._congested:
            return False  # its request is not whole
        own = not self.endpoint.is_peer  # a peer sees itself whether its engine moves
        stands_still = own and now - self.endpoint.moved_at >= x.timeouts.first_byte_s
        return x.stream or stands_still or silence >= _LATE * x.expected_s

    def _begin(self, x: Exchange) -> None:
        """Pass on what came before the first token: it may be there to keep proxies from giving up."""
        early, self._early = self._early, b""
        head = self._reader.head
        assert head is not None
        self._head_seen = True
        x.responded = self._context.clock.now()
        x.status = head.status
        if x.pipeline.response(x):
            x.client.relay(x, head, early, False)

    def _try_elsewhere(self, x: Exchange) -> None:
        """The first token is late; where nobody else could do it, it may still come."""
        x.upstream = None
        if x.pipeline.recovers(x, FIRST_TOKEN_TIMEOUT.reason):
            self._x = None
            self._transport.abort()
        else:
            x.upstream = self
            x.failure = ""

    def _may_repeat(self, x: Exchange) -> bool:
        """The engine seems to have left before it was asked, and asking it again does no harm."""
        request = x.request
        return (
            self.idle_since > 0
            and not (self._begun or self._head_seen)
            and request.method in _SAFE
            and (x.body is not None or (request.complete and not request.received))
        )

    def _release(self) -> None:
        x = self._x
        if x is not None:
            x.upstream = None
            self._x = None

    def _every(self) -> float:
        """How often to look at the time-outs: often enough for the shortest, rarely enough for thousands."""
        timeouts = self._context.timeouts if self._x is None else self._x.timeouts
        return min(5.0, timeouts.first_byte_s / 4, timeouts.stall_s / 4, self._context.patience_s / 4)

    def _check(self, _: None) -> None:
        x = self._x
        if x is not None and not x.client.is_congested:
            timeouts = x.timeouts
            now = self._context.clock.now()
            silence = now - self._heard
            if not self._head_seen:
                if silence >= timeouts.first_byte_s and self._is_over(x, silence, now):
                    self._fail(FIRST_TOKEN_TIMEOUT)
                elif x.stream and silence >= self._context.patience_s and not self._streams:
                    self._try_elsewhere(x)
                elif self._early and silence >= _HELD_S and self._context.patience_s == inf:
                    self._begin(x)
            elif silence >= timeouts.stall_s:
                self._fail(STALLED)
        if not self._transport.is_closing():
            self._timer = self._context.timers.after(self._every(), self._check, None)


def _begins(head: ResponseHead, body: bytes) -> bool:
    """A stream has come to its first token, or it cannot be told."""
    noted = head.noted
    if len(body) > _MOST_EARLY:
        return True
    if noted.get(b"content-type", b"")[:17].lower() != b"text/event-stream" or b"content-encoding" in noted:
        return len(body) > 0
    return has_token(body)


def _count(x: Exchange, data: bytes) -> None:
    """The events in a piece of an answer; and its usage, all of it that is kept: memory is scarce."""
    x.tokens += data.count(_EVENT)
    at = data.rfind(_USAGE, -_TAIL)
    if at >= 0:
        x.tail = data[at:]
