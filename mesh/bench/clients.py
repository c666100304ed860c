"""Callers that ask on time, whatever became of those before, and wait no longer than they have patience.

Each is a small state machine on raw connections, since callers, servers and what stands between them share a
machine's cores (a streamed token must cost a few microseconds here, not hundreds):

    asking      a connection is taken from the pool or opened, and the request sent on it
    listening   until the answer is whole, breaks off, or has been silent for too long
    pausing     until it asks again, as `retries` says
    ended       with one `Outcome`

A caller stays with one target over its tries; callers are dealt round robin. One that gives up closes its
connection, so that the server can know.
"""

import asyncio
import os
import resource
import socket
import ssl
from collections.abc import Callable, Sequence
from math import inf
from random import Random
from time import perf_counter
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec

from mesh.bench import retries, text
from mesh.bench.answer import Answer, Undecipherable, said
from mesh.bench.origin import Attempt, Origin, Outcome
from mesh.bench.workload import Ask
from sidecar.errors import ProtocolError
from sidecar.http1.response import ResponseHead

REFUSALS: Final = frozenset({429, 503, 529})  # there is no room
LONGEST_S: Final = 900.0  # nobody listens longer, even while tokens come
_IDLE_S: Final = 4.0  # servers close what is idle for 5 s, and a request on the way is lost then
_EARLY_S: Final = 0.0005  # timers of the loop count milliseconds
_PROGRESS_S: Final = 0.1


async def drive(
    asks: Sequence[Ask],
    targets: Sequence[str],
    *,
    model: str,
    extra_body: Callable[[Ask], dict[str, Any]] | None = None,
    progress: Callable[[float], None] | None = None,
    until_s: float = inf,
) -> list[Origin]:
    """Ask all of `asks` of the servers at these base URLs; what became of each, in the same order.

    `extra_body` adds members to a request's body; `progress` is told ten times a second which part has ended.
    After `until_s` whoever is still there leaves, and stays open.
    """
    _allow_connections()
    crowd = _Crowd(asks, [Target(url) for url in targets], model, extra_body)
    try:
        crowd.start()
        while not crowd.done.done() and crowd.now() < until_s:
            await asyncio.wait([crowd.done], timeout=min(_PROGRESS_S, until_s - crowd.now()))
            if progress is not None:
                progress(crowd.ended / max(1, len(asks)))
        if crowd.done.done():
            crowd.done.result()
    finally:
        crowd.close()
    return crowd.origins


def _allow_connections() -> None:
    """As many as this process may have: under overload thousands wait."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _why(error: OSError) -> str:
    """Few words, without addresses. Numbers of TLS and of the resolver are their own, not the system's."""
    if isinstance(error, ssl.SSLError | socket.gaierror) or not error.errno:
        return type(error).__name__
    return os.strerror(error.errno)


class Target:
    """One server, and the connections to it that wait for a request."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url}: not the http:// or https:// URL of a server")
        self.host = parts.hostname
        self.port = parts.port or (443 if parts.scheme == "https" else 80)
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.base = parts.path.rstrip("/").removesuffix("/v1") + "/v1"
        self.netloc = parts.netloc.rpartition("@")[2]
        self.idle: list[_Connection] = []

    def url(self, path: str) -> str:
        """Where it has `path` of the OpenAI API."""
        return f"{'http' if self.tls is None else 'https'}://{self.netloc}{self.base}/{path}"

    def take(self, now: float) -> "_Connection | None":
        """The connection that was used last, unless even that one is too old."""
        while self.idle:
            connection = self.idle.pop()
            if now - connection.idle_since < _IDLE_S:
                return connection
            connection.leave()
        return None


class _Crowd:
    """What the callers of one run share."""

    def __init__(
        self,
        asks: Sequence[Ask],
        targets: Sequence[Target],
        model: str,
        extra_body: Callable[[Ask], dict[str, Any]] | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.origins = [Origin(ask) for ask in asks]
        self.ended = 0
        self.random = Random(0)
        self._targets = targets
        self._model = model
        self._extra_body = extra_body
        self._next = 0
        self._timer: asyncio.TimerHandle | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._callers: set[_Caller] = set()
        self._began = 0.0

    def now(self) -> float:
        return perf_counter() - self._began

    def start(self) -> None:
        self._began = perf_counter()
        if self.origins:
            self._send_due()
        else:
            self.done.set_result(None)

    def _send_due(self) -> None:
        """Begin every caller whose time has come, and wait for the next one's."""
        while self._next < len(self.origins):
            origin = self.origins[self._next]
            early = origin.ask.at - self.now()
            if early > _EARLY_S:
                self._timer = self.loop.call_later(early, self._send_due)
                return
            target = self._targets[self._next % len(self._targets)]
            self._next += 1
            caller = _Caller(self, origin, target, self._body(origin.ask))
            self._callers.add(caller)
            caller.ask()

    def _body(self, ask: Ask) -> bytes:
        traffic = ask.traffic
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": "user", "content": text.prompt(ask.number, ask.prompt_tokens)}],
            "stream": traffic.stream,
        }
        if traffic.stream:
            body["stream_options"] = {"include_usage": True}
        if traffic.answer is not None:
            body["max_tokens"] = traffic.answer
        if self._extra_body is not None:
            body |= self._extra_body(ask)
        return msgspec.json.encode(body)

    def open(self, target: Target, caller: "_Caller") -> None:
        """Connect for this caller; it may have given up when the connection is there."""
        task = self.loop.create_task(self._connect(target, caller, caller.tries))
        self._opening.add(task)
        task.add_done_callback(self._opened)

    async def _connect(self, target: Target, caller: "_Caller", tries: int) -> None:
        try:
            _, connection = await self.loop.create_connection(
                lambda: _Connection(self, target), target.host, target.port, ssl=target.tls
            )
        except OSError as error:
            if caller.tries == tries and caller.is_waiting:
                caller.on_lost(_why(error))
            return
        if caller.tries == tries and caller.is_waiting:
            caller.send(connection)
        else:
            connection.rest()

    def _opened(self, task: "asyncio.Task[None]") -> None:
        self._opening.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self.done.done():
            self.done.set_exception(error)

    def leave(self, caller: "_Caller") -> None:
        self._callers.discard(caller)
        self.ended += 1
        if self.ended == len(self.origins) and not self.done.done():
            self.done.set_result(None)

    def close(self) -> None:
        """End everything at once."""
        if self._timer is not None:
            self._timer.cancel()
        for task in self._opening:
            task.cancel()
        for caller in list(self._callers):
            caller.abandon()
        for target in self._targets:
            for connection in target.idle:
                connection.leave()
            target.idle.clear()


class _Caller:
    """One origin under way."""

    __slots__ = (
        "_answer", "_attempt", "_body", "_connection", "_crowd", "_gives_up", "_origin", "_target",
        "_timeout_s", "_timer", "is_waiting", "tries",
    )  # fmt: skip

    def __init__(self, crowd: _Crowd, origin: Origin, target: Target, body: bytes) -> None:
        traffic = origin.ask.traffic
        self._crowd = crowd
        self._origin = origin
        self._target = target
        self._body = body
        self._gives_up = origin.ask.at + traffic.patience_s
        self._timeout_s = min(traffic.timeout_s or traffic.patience_s, traffic.patience_s)
        self._connection: _Connection | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.tries = 0
        self.is_waiting = False

    def ask(self) -> None:
        """Begin a try."""
        crowd = self._crowd
        now = crowd.now()
        self.tries += 1
        self.is_waiting = True
        self._attempt = Attempt(now)
        self._answer = Answer(streams=self._origin.ask.traffic.stream)
        self._origin.attempts.append(self._attempt)
        self._wait_until(min(now + self._timeout_s, self._gives_up))
        connection = self._target.take(now)
        if connection is None:
            crowd.open(self._target, self)
        else:
            self.send(connection)

    def send(self, connection: "_Connection") -> None:
        self._connection = connection
        connection.caller = self
        connection.write(self._head() + self._body)

    def _head(self) -> bytes:
        traffic = self._origin.ask.traffic
        lines = [
            f"POST {self._target.base}/chat/completions HTTP/1.1",
            f"host: {self._target.netloc}",
            "user-agent: headgate-bench",
            "content-type: application/json",
            f"content-length: {len(self._body)}",
            f"x-priority: {traffic.cls}",
            f"x-stainless-retry-count: {self.tries - 1}",
            f"x-stainless-read-timeout: {self._timeout_s:g}",
        ]
        if traffic.key:
            lines.append(f"authorization: Bearer {traffic.key}")
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1")

    def on_data(self, data: bytes) -> None:
        answer = self._answer
        try:
            if answer.feed(data, self._crowd.now()):
                self._on_end()
        except (ProtocolError, Undecipherable) as error:
            self._drop()
            self._after(f"{error}", "error")

    def on_eof(self) -> None:
        """The server closed its side; that may be how an answer ends."""
        self._drop()
        try:
            whole = self._answer.end_of_stream(self._crowd.now())
        except Undecipherable as error:
            self._after(f"{error}", "error")
            return
        if whole:
            self._on_end()
        else:
            self.on_lost("reset")

    def on_lost(self, why: str) -> None:
        """There will be no more of this answer."""
        self._connection = None
        head = self._answer.head
        # A stream has begun for the SDK with its head, and then nothing is asked again.
        is_cut = head is not None and self._origin.ask.traffic.stream
        self._after(why, "cut" if is_cut else "error", may_repeat=not is_cut)

    def _on_end(self) -> None:
        """The body is here to its last byte."""
        connection, self._connection = self._connection, None
        head = self._answer.head
        assert head is not None
        if connection is not None:
            if head.keep_alive and not self._answer.reader.excess:
                connection.rest()
            else:
                connection.leave()
        if head.status < 300:
            self._after("", "served" if self._answer.is_whole else "cut", may_repeat=False)
        else:
            self._after("", "refused" if head.status in REFUSALS else "error")

    def _on_timer(self) -> None:
        now = self._crowd.now()
        heard = self._answer.tokens_at
        if heard and now < self._attempt.sent + LONGEST_S and now < heard[-1] + self._timeout_s - _EARLY_S:
            self._wait_until(heard[-1] + self._timeout_s)
            return
        self._drop()
        # The SDK itself asks again only while there is no head; what calls it, while there is no token.
        self._after("gave_up", "timeout", may_repeat=not heard)

    def _after(self, why: str, outcome: Outcome, *, may_repeat: bool = True) -> None:
        """This try is over: pause and ask again, or end."""
        self.is_waiting = False
        crowd, now = self._crowd, self._crowd.now()
        self._record(now, why)
        pause = self._pause() if may_repeat else None
        if pause is None or now + pause >= self._gives_up:
            self._end(now, outcome)
        else:
            self._cancel_timer()
            self._timer = crowd.loop.call_later(pause, self.ask)

    def _record(self, now: float, why: str) -> None:
        """What came of this try."""
        attempt = self._attempt
        attempt.ended = now
        attempt.reason = why
        if (head := self._answer.head) is not None:
            self._note(head)
        if heard := self._answer.tokens_at:
            attempt.first_token = heard[0]
            self._origin.tokens_at = heard

    def _note(self, head: ResponseHead) -> None:
        attempt, words = self._attempt, said(head)
        attempt.status = head.status
        attempt.reason = words.reason or attempt.reason
        attempt.retry_after_s = words.retry_after_s
        attempt.should_retry = words.should_retry
        attempt.queue_ms = words.queue_ms

    def _pause(self) -> float | None:
        traffic, attempt = self._origin.ask.traffic, self._attempt
        if self.tries > traffic.retries:
            return None
        return retries.pause(
            self.tries - 1,
            attempt.status if attempt.status >= 300 else 0,  # what broke off is no answer
            retry_after_s=attempt.retry_after_s,
            should_retry=attempt.should_retry,
            obeys=traffic.obeys,
            random=self._crowd.random,
        )

    def _end(self, now: float, outcome: Outcome) -> None:
        self._cancel_timer()
        self._origin.ended = now
        self._origin.outcome = outcome
        self._crowd.leave(self)

    def abandon(self) -> None:
        """Leave without an outcome: the run is over."""
        self._cancel_timer()
        self._drop()
        self._origin.ended = self._crowd.now()
        if self.is_waiting:
            self.is_waiting = False
            self._record(self._origin.ended, "")

    def _wait_until(self, at: float) -> None:
        self._cancel_timer()
        self._timer = self._crowd.loop.call_later(max(0.0, at - self._crowd.now()), self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.leave()


class _Connection(asyncio.Protocol):
    """A connection to a target; it has a caller, or rests in the pool."""

    def __init__(self, crowd: _Crowd, target: Target) -> None:
        self.caller: _Caller | None = None
        self.idle_since = 0.0
        self._crowd = crowd
        self._target = target

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write

    def data_received(self, data: bytes) -> None:
        if self.caller is not None:
            self.caller.on_data(data)
        else:
            self.leave()  # bytes that nobody asked for

    def connection_lost(self, exc: Exception | None) -> None:
        caller, self.caller = self.caller, None
        if caller is not None:
            caller.on_eof()
        elif self in self._target.idle:
            self._target.idle.remove(self)

    def rest(self) -> None:
        """Wait for another caller."""
        self.caller = None
        self.idle_since = self._crowd.now()
        self._target.idle.append(self)

    def leave(self) -> None:
        """Close at once, whatever was sent."""
        self.caller = None
        self._transport.abort()
