"""The whole data plane of a sidecar without a socket, an event loop or a real clock.

    wire = Wire("admission: {max_in_flight: 1}")
    client = wire.client()
    client >> get("/health")              the client sends
    wire.engine.request()                 what the engine then sees (see `engine`)
    wire.engine >> ok(b"fine")            the engine answers
    client << b"HTTP/1.1 200 OK..."       these very bytes come back; or, read by h11: client.answer()
    wire.advance(10)                      ten seconds pass

A bug that the pipeline turns into a 500 fails the test, as does anything else logged as an error.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import h11

from sidecar.config import decode
from sidecar.net.downstream import Downstream
from sidecar.plane import Plane
from tests.harness.clock import FakeClock
from tests.harness.engine import End, Engine, Fields, Script
from tests.harness.transport import FakeSocket, FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sidecar.balance.endpoint import Endpoint
    from sidecar.net.upstream import Upstream
    from sidecar.settings import Config
    from sidecar.telemetry.record import Record

CHAT = "/v1/chat/completions"
_STEP_S = 0.25


class FakeDialer:
    """Connects at once; `held`, when the test says so; `refused`, never; `slow`, to a deaf one.

    `refusing`: never to those of these names. `unheard`: nobody answers, so that it gives up when its time is
    over. `dead`: it breaks when it is used.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.held = False
        self.refused = False
        self.refusing: set[str] = set()
        self.slow = False
        self.unheard = False
        self.dead = False
        self.hangs_up = False  # the engine, as soon as it is connected
        self.waiting: list[Callable[[], None]] = []

    def dial(
        self,
        endpoint: Endpoint,
        timeout_s: float,
        made: Callable[[], Upstream],
        then: Callable[[Upstream | None], None],
    ) -> None:
        if self.unheard:
            self._wire.timers.after(timeout_s, then, None)
            return
        (self.waiting if self.held else self._wire.soon).append(lambda: self._end(endpoint, made, then))

    def go_on(self) -> None:
        """What was held comes to its end."""
        self._wire.soon.extend(self.waiting)
        self.waiting.clear()
        self._wire.settle()

    def _end(
        self, endpoint: Endpoint, made: Callable[[], Upstream], then: Callable[[Upstream | None], None]
    ) -> None:
        if self.refused or endpoint.name in self.refusing:
            then(None)
            return
        upstream = made()
        transport = FakeTransport(upstream, self._wire.soon)
        transport.slow = self.slow
        transport.dead = self.dead
        self._wire.engines.append(Engine(self._wire, transport, endpoint))
        if self.hangs_up:
            transport.close()
        then(upstream)


@dataclass
class Answer:
    """What a client got. `complete` is False when it broke off or is not here yet."""

    status: int = 0
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    interim: list[tuple[int, Fields]] = field(default_factory=list)

    def __getitem__(self, name: bytes) -> bytes:
        """The value of a field that is there exactly once."""
        (value,) = (value for field, value in self.fields if field == name)
        return value

    def __contains__(self, name: bytes) -> bool:
        return any(name == field for field, _ in self.fields)

    @property
    def reason(self) -> str:
        """Why the mesh answered; empty when the engine did."""
        return self[b"x-headgate-reason"].decode() if b"x-headgate-reason" in self else ""


def read_answer(data: bytes, method: bytes = b"GET", *, ended: bool = False) -> tuple[Answer, bytes]:
    """The answer to a `method` request that h11 reads at the start of `data`, and what follows it."""
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
    parser.send(h11.Request(method=method, target=b"/", headers=[(b"host", b"a")]))
    parser.send(h11.EndOfMessage())
    if data:
        parser.receive_data(data)
    if ended:
        parser.receive_data(b"")
    found = Answer()
    while not found.complete:
        try:
            event = parser.next_event()
        except h11.RemoteProtocolError:
            if not ended:
                raise
            break  # cut short
        if isinstance(event, h11.InformationalResponse):
            found.interim.append((event.status_code, list(event.headers)))
        elif isinstance(event, h11.Response):
            found.status, found.fields = event.status_code, list(event.headers)
        elif isinstance(event, h11.Data):
            found.body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            found.complete = True
        else:
            break
    return found, parser.trailing_data[0]


class Client:
    """One client connection, from the client's end."""

    def __init__(self, wire: Wire, peer: str, *, is_mesh: bool = False) -> None:
        self._wire = wire
        self.downstream = Downstream(wire.context, is_mesh=is_mesh)
        peername = (peer, 40000) if peer else ""
        sock = FakeSocket(socket.AF_INET if peer else socket.AF_UNIX)
        self.transport = FakeTransport(self.downstream, wire.soon, peername=peername, socket=sock)
        self._came = b""
        wire.settle()

    def __rshift__(self, data: bytes | End) -> Self:
        """Send `data` to the sidecar, or end the connection."""
        self.transport.happens(data)
        self._wire.settle()
        return self

    def __lshift__(self, expected: bytes) -> Self:
        """Exactly `expected` came since the last look."""
        assert self.received() == expected
        return self

    def received(self) -> bytes:
        """The bytes that came since the last look."""
        data, self._came = self._came + self.transport.take(), b""
        return data

    def answer(self, method: bytes = b"GET") -> Answer:
        """The next answer, complete or not."""
        answer, self._came = read_answer(self.received(), method, ended=self.is_over)
        return answer

    @property
    def has_news(self) -> bool:
        """Something came that nobody has looked at."""
        self._came += self.transport.take()
        return bool(self._came)

    @property
    def is_over(self) -> bool:
        """The sidecar has closed its side in good order."""
        return (self.transport.closing or self.transport.eof_written) and not self.transport.aborted

    @property
    def was_reset(self) -> bool:
        """The sidecar broke the connection so that the client notices."""
        sock = self.transport.get_extra_info("socket")
        return self.transport.aborted and any(name == socket.SO_LINGER for _, name, _ in sock.options)

    @property
    def is_open(self) -> bool:
        return not self.transport.closing and not self.transport.eof_written


class Wire:
    """One sidecar. `config` is added to a minimal one; `engine` is an address, `keys` are others there."""

    def __init__(
        self,
        config: str = "",
        *,
        script: Script | None = None,
        engine: str = "127.0.0.1:8000",
        keys: str = "",
    ) -> None:
        self.soon: deque[Callable[[], None]] = deque()
        self.clock = FakeClock()
        self.dialer = FakeDialer(self)
        self.engines: list[Engine] = []
        self.script = script
        self.plane = Plane(_config(config, engine, keys), "test", self.clock, self.dialer)
        self.plane.context.has_left = lambda transport: transport.peer_has_left  # type: ignore[attr-defined]
        self.lifecycle = self.plane.lifecycle
        self.timers = self.plane.timers
        self.context = self.plane.context
        self.gate = self.plane.admission
        self.catalog = self.plane.catalog
        self.metrics = self.plane.metrics
        self.receipts = self.plane.receipts
        self.endpoint = self.plane.endpoint

    def configure(self, config: str) -> None:
        """Put another configuration in force, as a reload does."""
        self.plane.put_in_force(_config(config))
        self.settle()

    def client(self, peer: str = "192.0.2.7", *, is_mesh: bool = False) -> Client:
        """A new connection from `peer`; from a unix socket when that is empty.

        `is_mesh`: it comes in where peers do.
        """
        return Client(self, peer, is_mesh=is_mesh)

    def drive(self, data: bytes) -> bytes:
        """What a new client that sends `data` gets back, answered by `script`."""
        return (self.client() >> data).received()

    @property
    def engine(self) -> Engine:
        """The engine's end of the newest connection."""
        return self.engines[-1]

    @property
    def record(self) -> Record:
        """What the newest finished exchange left behind."""
        return self.receipts.last(1)[0]

    def settle(self) -> None:
        """Let everything happen that happens without time passing."""
        with _no_errors_logged():
            while self.soon or self._play():
                while self.soon:
                    self.soon.popleft()()
        for engine in self.engines:
            engine.read()

    def advance(self, seconds: float) -> None:
        """Let time pass, and what is due happen."""
        until = self.clock.now() + seconds
        while self.clock.now() < until:
            self.clock.advance(min(_STEP_S, until - self.clock.now()))
            with _no_errors_logged():
                self.plane.tick()
            self.settle()

    def _play(self) -> bool:
        script = self.script
        return script is not None and any(engine.play(script) for engine in self.engines)

    def assert_at_rest(self) -> None:
        """Nothing is under way, and nothing was lost."""
        assert self.gate.in_flight == self.gate.queued == 0
        assert self.endpoint.in_flight == 0
        assert self.plane.bodies.held == 0
        assert all(client.is_idle for client in self.context.clients)


def get(path: str = "/", *fields: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request without a body."""
    lines = "".join(f"{line}\r\n" for line in ("host: a", *fields))
    return f"{method} {path} HTTP/{version}\r\n{lines}\r\n".encode("latin-1")


def post(path: str = CHAT, body: bytes = b"{}", *fields: str, version: str = "1.1") -> bytes:
    """A request with a body and its length."""
    return get(path, *fields, f"content-length: {len(body)}", version=version, method="POST") + body


def post_chunked(path: str, *pieces: bytes, last: bool = True) -> bytes:
    """A request with a chunked body; without `last` it goes on."""
    body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)
    return get(path, "transfer-encoding: chunked", method="POST") + body + (b"0\r\n\r\n" if last else b"")


def _config(text: str, engine: str = "127.0.0.1:8000", keys: str = "") -> Config:
    return decode(f"engine: {{address: '{engine}'{keys and ','} {keys}}}\n{text}", {})


class _Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def _no_errors_logged() -> Iterator[None]:
    errors = _Errors()
    logger = logging.getLogger("headgate")
    logger.addHandler(errors)
    try:
        yield
    finally:
        logger.removeHandler(errors)
    for record in errors.records:
        raise AssertionError(record.getMessage()) from (record.exc_info[1] if record.exc_info else None)
