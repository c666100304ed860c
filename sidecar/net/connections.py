"""Connections to engines: idle ones are used again, last in first out; else one is made.

An idle connection is not used after `engine_idle_s`: engines on uvicorn close theirs after 5 s, and
a POST that was sent on a dying connection may not be sent again. One that was idle for a while is
asked first whether the engine has left.

Where that was not known in time, a request goes out once more, and nobody notices (RFC 9110 section
9.2.2, RFC 9112 section 9.3.1): when its body is held and not a byte was taken, on whatever connection is
left; when it is safe, has no body that streams, and not a byte of an answer came, on a new one, for idle
ones die together. It stays one attempt: what is retried is the connection, not the engine.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.clock import SystemClock
from sidecar.errors import CONNECT_FAILED, INTERNAL
from sidecar.exchange import DONE, Exchange, Reply
from sidecar.net.complaints import Complaints
from sidecar.net.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.balance.endpoint import Endpoint
    from sidecar.net.context import Context

_TRUSTED_S: Final = 0.5  # idle for less, the event loop would have heard

log = logging.getLogger("headgate.connections")


class Dialer(Protocol):
    """Opens a connection to an endpoint."""

    def dial(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        made: Callable[[], Upstream],
        then: Callable[[Upstream | None], None],
    ) -> None:
        """Call `then` with the connected protocol that `made` built, or with None when it failed."""


class Dialling:
    """Stands for the connection of an exchange while there is none yet."""

    __slots__ = ("x",)

    def __init__(self, x: Exchange) -> None:
        self.x: Exchange | None = x
        x.upstream = self

    def abandon(self) -> None:
        if self.x is not None:
            self.x.upstream = None
            self.x = None

    def adopt(self, x: Exchange) -> None:
        self.x = x
        x.upstream = self

    def send_more(self) -> None:
        if self.x is not None and not self.x.request.complete:
            self.x.client.read_on(False)

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass


class Connections:
    """All connections to engines."""

    def __init__(self, context: Context, dialer: Dialer) -> None:
        self._context = context
        self._dialer = dialer
        self._open: set[Upstream] = set()
        self._idle: dict[Endpoint, list[Upstream]] = {}
        self._dialling = 0

    def __len__(self) -> int:
        return len(self._open)

    @property
    def descriptors(self) -> int:
        """How many files they take: open ones and those that are being made."""
        return len(self._open) + self._dialling

    def send(self, x: Exchange) -> None:
        """Carry `x` to its endpoint."""
        endpoint = x.endpoint
        assert endpoint is not None
        idle = self._idle.get(endpoint)
        now, longest = x.dispatched, self._context.timeouts.engine_idle_s
        while idle:
            upstream = idle.pop()
            rest = now - upstream.idle_since
            if rest < longest and (rest <= _TRUSTED_S or not upstream.has_left) and upstream.send(x):
                return
            upstream.close()
        self._dial(x, endpoint)

    def send_afresh(self, x: Exchange) -> None:
        """Carry `x` to its endpoint on a new connection."""
        assert x.endpoint is not None
        self._dial(x, x.endpoint)

    def idle(self, upstream: Upstream) -> None:
        """`upstream` has delivered its answer and can carry another."""
        self._idle.setdefault(upstream.endpoint, []).append(upstream)

    def lost(self, upstream: Upstream) -> None:
        """`upstream` is gone. If it was idle, it is skipped when its turn comes."""
        self._open.discard(upstream)

    def sweep(self) -> None:
        """Close what has been idle for too long. Called every second or so."""
        dead = self._context.clock.now() - self._context.timeouts.engine_idle_s
        for endpoint, idle in list(self._idle.items()):
            old = next((i for i, upstream in enumerate(idle) if upstream.idle_since > dead), len(idle))
            for upstream in idle[:old]:
                upstream.close()
            del idle[:old]
            if not idle:
                del self._idle[endpoint]

    def close(self) -> None:
        """Close everything."""
        for upstream in list(self._open):
            upstream.abandon()

    def _dial(self, x: Exchange, endpoint: Endpoint) -> None:
        dialling = Dialling(x)
        self._dialling += 1

        def connected(upstream: Upstream | None) -> None:
            self._dialling -= 1
            x = dialling.x
            if upstream is not None and not upstream.is_usable:
                upstream = None  # the engine hung up at once
            if upstream is not None:
                self._open.add(upstream)
            if x is None or x.state == DONE:
                if upstream is not None:
                    upstream.idle_since = self._context.clock.now()
                    self.idle(upstream)
                return
            dialling.abandon()
            if upstream is None:
                x.pipeline.fail(x, Reply(CONNECT_FAILED))
            else:
                self._send_late(upstream, x)

        self._dialer.dial(
            endpoint,
            self._context.timeouts.connect_s,
            lambda: Upstream(self._context, endpoint),
            connected,
        )

    def _send_late(self, upstream: Upstream, x: Exchange) -> None:
        """What is raised here has left the pipeline that would have settled `x`."""
        try:
            upstream.send(x)
        except Exception:
            log.exception("sending to %s failed", upstream.endpoint.name)
            x.pipeline.refuse(x, Reply(INTERNAL))


class LoopDialer:
    """The real one. Making a connection is rare, so a task for it costs nothing that matters."""

    def __init__(self) -> None:
        self._complaints = Complaints(SystemClock.now)
        self._tasks: set[asyncio.Task[None]] = set()  # a task nobody holds may be collected

    def dial(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        made: Callable[[], Upstream],
        then: Callable[[Upstream | None], None],
    ) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(endpoint, timeout_s, made, then))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        made: Callable[[], Upstream],
        then: Callable[[Upstream | None], None],
    ) -> None:
        loop = asyncio.get_running_loop()
        upstream: Upstream | None = None
        try:
            async with asyncio.timeout(timeout_s):
                if endpoint.path:
                    _, upstream = await loop.create_unix_connection(made, endpoint.path)
                else:
                    _, upstream = await loop.create_connection(made, endpoint.host, endpoint.port)
        except Exception as error:  # whatever it is, somebody waits for the outcome
            endpoint.refused += 1
            self._complaints.warn(endpoint.name, f"connecting failed: {error or 'timed out'}")
        then(upstream)
