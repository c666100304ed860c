"""A client's connection: requests in, answers out, in the order of the requests.

One exchange at a time is under way; what a client pipelines behind it waits unparsed further than
its head and, beyond a few, unread. A connection is in one of these situations, and each has an end:

    idle        between requests            keep_alive_s, then closed
    head        a head has begun            head_s, then 408
    body        a body is coming            body_s for each 16 KiB of it or its end, then 408
    exchange    the pipeline has it         the pipeline's and the upstream's time-outs
    congested   the client does not read    stall_s, or until memory is short, then reset
    hanging up  the last answer is out      LINGER_S of unread input, so that no reset eats the answer

The client has gone when its side is closed while an exchange is under way: a half-closed sender
cannot be told from one that left, and a GPU must not work for the latter. While nobody reads, because
the body has nobody to take it or too much was read ahead, the socket is asked four times a second.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, cast

from sidecar.errors import (
    CLIENT_GONE,
    DRAINING,
    INTERNAL,
    OVERLOADED,
    REQUEST_TIMEOUT,
    TOO_MANY_CONNECTIONS,
    ProtocolError,
    Refusal,
)
from sidecar.exchange import Exchange, Reply
from sidecar.http1.encode import CONTINUE, LAST_CHUNK, chunk
from sidecar.http1.request import MAX_WAITING, Request, RequestReader
from sidecar.llm.errors import error_event
from sidecar.net.answers import engine_head, own_answer, unreadable
from sidecar.net.sockets import pause_at_once, reset_on_close

if TYPE_CHECKING:
    from sidecar.http1.response import ResponseHead
    from sidecar.net.context import Context
    from sidecar.net.timers import Timer

LINGER_S: Final = 2.0
_MAX_TURNED_AWAY: Final = 256  # connections that are told so at once; more are cut
_MAX_AHEAD: Final = 64 * 1024  # bytes of bodies read ahead of their turn
_LEAST_OF_BODY: Final = 16 * 1024  # bytes that must come within body_s
_LOOK_EVERY_S: Final = 0.25
_GRACE_S: Final = 1.0  # for a reader for whose bytes there is no room

log = logging.getLogger("headgate.downstream")


class Downstream(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_answering", "_began", "_body_seen", "_closing", "_congested_since", "_context", "_event_stream",
        "_failure", "_heard", "_looking", "_proceeding", "_reader", "_reading", "_timer", "_transport",
        "_turned_away", "_unread", "_until_close", "_x", "has_place", "is_mesh", "peer", "takes_chunks",
    )  # fmt: skip

    _transport: asyncio.Transport
    _timer: Timer

    def __init__(self, context: Context, *, is_mesh: bool = False) -> None:
        self._context = context
        self.is_mesh = is_mesh
        self._reader = RequestReader()
        self._failure: ProtocolError | None = None  # what ended the reading
        self._x: Exchange | None = None
        self._proceeding = False
        self._reading = True
        self._closing = False
        self._congested_since = 0.0
        self._unread = 0  # bytes that it does not take, which count among those in memory
        self._turned_away = False
        self._looking = False  # for a client that leaves while nobody reads
        self._heard = 0.0
        self._began = 0.0  # the wait for the client: for a request, its head's rest, or more of its body
        self._body_seen = 0  # bytes of the body that had come then
        self._forget_answer()
        self.peer = ""
        self.has_place = False  # it counts among the connections of its address

    def _forget_answer(self) -> None:
        self._answering = False  # the head of the answer is out
        self.takes_chunks = False
        self._event_stream = False
        self._until_close = False

    @property
    def is_congested(self) -> bool:
        """The client does not read as fast as the engine writes."""
        return self._congested_since > 0

    @property
    def is_idle(self) -> bool:
        """No exchange is under way, and none has begun to come."""
        return self._x is None and (self._closing or (self._reader.is_idle and not self._reader.requests))

    @property
    def idle_since(self) -> float:
        """When it became idle, for one that is."""
        return self._began

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        context = self._context
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        pause_at_once(self._transport)
        peer = transport.get_extra_info("peername")
        self.peer = peer[0] if isinstance(peer, tuple) else ""
        self._heard = self._began = context.clock.now()
        self._timer = context.timers.after(self._every(), self._check, None)
        why = context.enter(self)
        if why is None:
            return
        if context.turned_away < _MAX_TURNED_AWAY:
            self._turned_away = True
            context.turned_away += 1  # apart: who is on the way out must not keep others out
            self._failure = ProtocolError(TOO_MANY_CONNECTIONS, why)
            self._proceed()
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._failure is not None or (self._closing and self._x is None):
            return
        self._heard = self._context.clock.now()
        reader = self._reader
        was_idle = reader.is_idle
        self._read(data)
        if was_idle and not reader.is_idle:
            self._began = self._heard
        if self._x is not None:
            self._body_progressed(self._x)
        self._proceed()

    def _read(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except ProtocolError as error:
            self._failure = error
        except Exception:
            log.exception("reading a request failed")
            self._failure = ProtocolError(INTERNAL, "see the log")

    def eof_received(self) -> None:
        if self._x is not None:
            self._transport.abort()  # not close(): what is unsent must not delay the news

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._timer.cancel()
        self._context.leave(self)
        self._context.turned_away -= self._turned_away
        self._forget_unread()
        self._congested_since = 0.0
        x = self._x
        if x is not None:
            self._x = None
            if not x.reason:
                x.status = CLIENT_GONE.status
                x.reason = CLIENT_GONE.reason
            if x.upstream is not None:
                x.upstream.abandon()
            x.pipeline.complete(x)

    def pause_writing(self) -> None:
        self._congested_since = self._context.clock.now()
        if not self._has_room():
            # Not at once: who reads is congested for moments too, and must not pay for others who do not.
            self._context.timers.after(_GRACE_S, self._make_room, self._congested_since)
        if self._x is not None and self._x.upstream is not None:
            self._x.upstream.pause()

    def _has_room(self) -> bool:
        unread = self._transport.get_write_buffer_size()
        if not self._context.bodies.take_spare(unread):
            return False
        self._unread += unread
        return True

    def _make_room(self, since: float) -> None:
        """Too much is in memory still: of all who could end now, the one who has read nothing `since`."""
        if self._congested_since != since or self._has_room():
            return
        x = self._x
        if x is not None:
            x.status = x.status or OVERLOADED.status
            x.reason = OVERLOADED.reason
        self.abort()

    def _forget_unread(self) -> None:
        self._context.bodies.give_back(self._unread)
        self._unread = 0

    def resume_writing(self) -> None:
        self._forget_unread()
        self._congested_since = 0.0
        if self._x is None:
            self._wait_anew()
        if self._x is not None and self._x.upstream is not None:
            self._x.upstream.resume()
        self._proceed()

    # Requests in.

    def _proceed(self) -> None:
        """Start what was read, one exchange after the other."""
        if self._proceeding:
            return
        self._proceeding = True
        try:
            self._begin_some()
        finally:
            self._proceeding = False
        reader = self._reader
        waiting = reader.requests
        if self._failure is not None and not waiting:
            self._answer_failure(self._failure)
        elif reader.has_rest or (waiting and sum(r.received for r in waiting) > _MAX_AHEAD):
            self.read_on(False)  # their turn has to come first

    def _begin_some(self) -> None:
        """As many as there may be, but in one turn no more than are read ahead: others wait too."""
        reader = self._reader
        # A client that does not read its answers gets no further ones: they would pile up here.
        for _ in range(MAX_WAITING):
            if reader.has_rest:
                self._read(b"")
            if not reader.requests or self._x is not None or self._closing or self._congested_since:
                return
            self._begin(reader.requests.popleft())
        if self._x is None and not self._closing:
            self._context.timers.after(0.0, self._go_on, None)

    def _go_on(self, _: None) -> None:
        if not self._transport.is_closing():
            self._proceed()

    def _answer_failure(self, failure: ProtocolError) -> None:
        """What was read last is no request: say so once its turn has come."""
        x = self._x
        if x is None and not self._closing:
            self._begin(Request(b"", b"", "1.1"), unreadable(failure, self._context.clock))
        elif x is not None and not x.request.complete:
            x.pipeline.refuse(x, unreadable(failure, self._context.clock))

    def _begin(self, request: Request, refused: Reply | None = None) -> None:
        context = self._context
        x = Exchange(request, self, context.pipeline, context.timeouts, self._heard)
        x.client_ip = self.peer
        x.refusal = refused
        self._x = x
        if request.complete or self._failure is None:
            if not request.complete:
                self._wait_anew()
            x.pipeline.start(x)
        else:  # it will never be whole: nothing of it may reach the engine
            x.pipeline.hold(x)
            x.pipeline.start(x)
            x.pipeline.release(x, unreadable(self._failure, context.clock))
        if x.entered and request.received:  # else it is over, or its turn comes after another's end
            self._body_progressed(x)

    def _body_progressed(self, x: Exchange) -> None:
        request = x.request
        if x.when_body is not None:
            try:
                x.when_body(x)
            except Exception:
                log.exception("a stage failed on the body")
                x.pipeline.refuse(x, Reply(INTERNAL))
        elif x.body is None and x.entered:  # it streams through
            if x.upstream is not None:
                if request.chunks or request.complete:
                    x.upstream.send_more()
            elif request.chunks and not request.complete:
                self.read_on(False)  # until there is somebody to take it

    def want_body(self, x: Exchange) -> None:
        """Let the body come."""
        request = x.request
        self.read_on(True)  # it may have been read ahead of its turn, until that was enough
        if b"expect" in request.noted and request.version == "1.1" and not request.received:
            self._transport.write(CONTINUE)

    def read_on(self, on: bool) -> None:
        """Stop or go on reading, as the one who takes the body can or cannot take more."""
        if on != self._reading and not self._transport.is_closing():
            self._reading = on
            if on:
                self._wait_anew()
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
                if not self._looking:
                    self._looking = True
                    self._context.timers.after(_LOOK_EVERY_S, self._look_for_departure, None)

    def _look_for_departure(self, _: None) -> None:
        """Reading is paused, so that the end of the client's side is not heard of."""
        self._looking = False
        if self._reading or self._transport.is_closing():
            return
        if self._context.has_left(self._transport):
            self._transport.abort()
        else:
            self._looking = True
            self._context.timers.after(_LOOK_EVERY_S, self._look_for_departure, None)

    # Answers out.

    def interim(self, x: Exchange, lines: bytes) -> None:
        """Pass on a 1xx answer."""
        if x.request.version == "1.1":
            self._transport.write(lines)

    def pass_on(self, x: Exchange, chunks: bytes, length: int) -> None:
        """Pass on a streamed token, framed as it came."""
        x.bytes_out += length
        self._transport.write(chunks)

    def relay(self, x: Exchange, head: ResponseHead | None, data: bytes, complete: bool) -> None:
        """Pass on what came of the engine's answer, in one write."""
        parts = [] if head is None else self._answer_head(x, head)
        if data:
            x.bytes_out += len(data)
            parts.append(chunk(data) if self.takes_chunks else data)
        if complete and self.takes_chunks:
            parts.append(LAST_CHUNK)
        if parts:
            self._transport.write(b"".join(parts))
        if complete:
            x.pipeline.complete(x)
            self._end()

    def _answer_head(self, x: Exchange, head: ResponseHead) -> list[bytes]:
        request = x.request
        has_body = request.method != b"HEAD" and head.status not in (204, 304)
        self._answering = True
        self.takes_chunks = has_body and head.length is None and request.version == "1.1"
        self._until_close = has_body and head.length is None and not self.takes_chunks
        if self.takes_chunks:
            noted = head.noted
            self._event_stream = (
                noted.get(b"content-type", b"")[:17].lower() == b"text/event-stream"
                and b"content-encoding" not in noted
            )
        self._closing_after(x)
        context = self._context
        load = context.report.line(x.responded, request.noted)
        return engine_head(x, head, context.date, load, chunked=self.takes_chunks, close=self._closing)

    def answer(self, x: Exchange, reply: Reply) -> None:
        """Answer in the engine's place, or end an answer that has begun so that nobody takes it for whole."""
        if x.upstream is not None:
            x.upstream.abandon()
        if self._x is not x:
            return
        try:
            self._answer(x, reply)
        except Exception:
            self._x = None  # nobody else would ever end it
            self._transport.abort()
            raise

    def _answer(self, x: Exchange, reply: Reply) -> None:
        if self._answering:
            self._break_off(reply.refusal)
            return
        self._closing_after(x)
        self._closing |= reply.refusal.close
        context = self._context
        status = context.overload_status if reply.refusal is OVERLOADED else reply.refusal.status
        x.status = status
        load = context.report.line(context.clock.now(), x.request.noted) if x.is_work else b""
        elsewhere = reply.refusal.elsewhere and context.has_elsewhere()
        self._transport.write(
            own_answer(x, reply, status, context.date, load, close=self._closing, elsewhere=elsewhere)
        )
        self._end()

    def _break_off(self, refusal: Refusal) -> None:
        if self._event_stream:
            self._transport.write(chunk(error_event(refusal)))
        elif self._until_close:
            # Here the end of the connection is the end of the answer, unless it is a reset.
            reset_on_close(self._transport)
            self._transport.abort()
        self._closing = True
        self._end()

    # Ends.

    def _closing_after(self, x: Exchange) -> None:
        """Decide, when the head of an answer is written, whether it is the last one here."""
        request = x.request
        if (
            not request.keep_alive
            or not request.complete
            or request.version == "1.0"
            or self._context.lifecycle.draining
            or self._context.lifecycle.crowded
        ):
            self._closing = True

    def _end(self) -> None:
        """The answer is out: on to the next request, or hang up."""
        self._x = None
        self._forget_answer()
        self._wait_anew()
        if self._closing:
            self._hang_up()
            return
        if not self._reading:
            self.read_on(True)
        if self._reader.requests or self._reader.has_rest or self._failure is not None:
            self._proceed()

    def _wait_anew(self) -> None:
        """The client could not have done anything before this."""
        self._began = self._context.clock.now()
        self._body_seen = 0 if self._x is None else self._x.request.received

    def _hang_up(self) -> None:
        """Close, once what was written is out and the client has stopped sending."""
        transport = self._transport
        if transport.is_closing():
            return
        reader = self._reader
        sent = reader.is_idle and not reader.requests and self._failure is None and self._reading
        self._timer.cancel()
        timeout = LINGER_S if not sent and not self.is_congested else self._context.timeouts.stall_s
        self._timer = self._context.timers.after(timeout, self.abort, None)
        if sent:
            transport.close()
            return
        # Closing now, with input unread, would reset the connection under the answer (RFC 9112
        # section 9.6): close our side, and read on for a while into nothing.
        self.read_on(True)
        if transport.can_write_eof():
            transport.write_eof()

    def close(self) -> None:
        """Close when what is written is out; an exchange under way is refused, or its answer broken off."""
        x = self._x
        if x is not None:
            x.pipeline.refuse(x, Reply(DRAINING, retry_after_s=self._context.clock.jitter(1.0, 0.2)))
        elif not self._closing:
            self._closing = True
            self._hang_up()

    def abort(self, _: None = None) -> None:
        """Close at once. Who has not read everything must not take it for the whole."""
        if self._congested_since:
            reset_on_close(self._transport)
        self._transport.abort()

    def _every(self) -> float:
        """How often to look at the time-outs: a wait may last a quarter longer than it should."""
        timeouts = self._context.timeouts if self._x is None else self._x.timeouts
        return min(timeouts.head_s, timeouts.body_s, timeouts.keep_alive_s, timeouts.stall_s) / 4

    def _check(self, _: None) -> None:
        """Enforce the time-outs of the file head; runs every now and then while the connection lives."""
        context = self._context
        x, now = self._x, context.clock.now()
        timeouts = context.timeouts if x is None else x.timeouts
        waited = now - self._began
        if self._congested_since:  # nothing else is expected of it before it reads
            if now - self._congested_since >= timeouts.stall_s:
                self.abort()
        elif x is None and self._reader.is_idle:
            if waited >= timeouts.keep_alive_s:
                self._closing = True
                self._hang_up()
        elif x is None:
            if waited >= timeouts.head_s:
                self._failure = ProtocolError(REQUEST_TIMEOUT, "the head")
                self._proceed()
        elif not x.request.complete and self._reading and waited >= timeouts.body_s:
            if x.request.received - self._body_seen < _LEAST_OF_BODY:
                x.pipeline.refuse(x, Reply(REQUEST_TIMEOUT))
            else:
                self._wait_anew()
        if not self._closing or self._x is not None:
            self._timer = context.timers.after(self._every(), self._check, None)
