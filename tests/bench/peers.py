"""The two ends of a benchmark: an engine that answers at once, and callers.

Raw protocols that do as little as they can, so that what stands between them is what is busy. All live in one
process, on one loop: so a caller can tell the engine to go on, and both read the same clock.

What the engine answers stands in the query of the target:

    (none)      1 KB of JSON
    ?stream     a chunk at every `stride`-th of 50 steps a second, for ever; all streams at the same instant,
                as an engine's steps are
    ?trickle    the same, once a second, spread over the second
    ?once       a stream of one chunk
    ?turn=KEY   a stream whose next chunk comes when `Engine.turn(KEY)` says so
"""

import asyncio
import re
from collections.abc import Callable
from time import perf_counter
from typing import Any, Final, cast

from tests.bench.hot_path import ANSWER, CHUNK, REQUEST, STREAM_HEAD

HOST: Final = "127.0.0.1"
STEPS_PER_S: Final = 50
LAST: Final = b"0\r\n\r\n"
_BACKLOG: Final = 65536  # of chunks that one stream's proxy did not take; more are left out
_ANSWER_BODY: Final = len(ANSWER) - ANSWER.index(b"\r\n\r\n") - 4
_FIELDS: Final = REQUEST[: REQUEST.index(b"content-length:")]
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_REASON: Final = re.compile(rb"\r\nx-headgate-reason: *([a-z_]+)")
_ACCEPTED: Final = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
# A prompt as JSON has it: with escapes, which make a decoder copy.
_PROSE: Final = b'The \\"engine\\" answers in turn,\\nand the callers wait. '


def post(query: bytes = b"", size: int = 1024) -> bytes:
    """A chat completion with a body of `size` bytes; it asks for a stream if there is a query."""
    start = b'{"model":"m","max_tokens":64,"stream":%b,"messages":[{"role":"user","content":"' % (
        b"true" if query else b"false"
    )
    end = b'"}]}'
    sentences, rest = divmod(size - len(start) - len(end), len(_PROSE))
    fields = _FIELDS.replace(b" HTTP/1.1", query + b" HTTP/1.1", 1)
    return b"%bcontent-length: %d\r\n\r\n%b" % (fields, size, start + _PROSE * sentences + b"x" * rest + end)


class Engine:
    """A model server on loopback."""

    def __init__(self) -> None:
        self.answers = 0
        self.stride = 1  # steps from one chunk of a stream to its next
        self.holds = False  # streams have their first chunk, and no other yet
        self._turns: dict[bytes, asyncio.Transport] = {}
        self._steady: set[asyncio.Transport] = set()
        self._slow: list[set[asyncio.Transport]] = [set() for _ in range(STEPS_PER_S)]

    async def listen(self) -> int:
        """One more port to reach it at."""
        return await _listen(lambda: _Answering(self))

    async def step(self) -> None:
        """Write the chunks of the streams that have a rate, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            for i, slot in enumerate(self._slow):
                due = loop.time() + 1 / STEPS_PER_S
                steady = () if i % self.stride else self._steady
                for stream in () if self.holds else (*steady, *slot):
                    if stream.get_write_buffer_size() < _BACKLOG:
                        stream.write(CHUNK)
                await asyncio.sleep(max(0.0, due - loop.time()))

    def turn(self, key: bytes) -> None:
        """Write the next chunk of that stream."""
        self._turns[key].write(CHUNK)

    def answer(self, target: bytes, to: asyncio.Transport) -> None:
        self.answers += 1
        kind, _, key = target.partition(b"?")[2].partition(b"=")
        if not kind:
            to.write(ANSWER)
        elif kind == b"once":
            to.write(STREAM_HEAD + CHUNK + LAST)
        else:
            to.write(STREAM_HEAD + CHUNK)
            if kind == b"stream":
                self._steady.add(to)
            elif kind == b"trickle":
                min(self._slow, key=len).add(to)
            else:
                self._turns[key] = to

    def forget(self, stream: asyncio.Transport) -> None:
        for streams in (self._steady, *self._slow):
            streams.discard(stream)


async def collector() -> int:
    """The port of a trace collector on loopback, which accepts everything."""
    return await _listen(_Collecting)


async def _listen(connection: Callable[[], asyncio.Protocol]) -> int:
    server = await asyncio.get_running_loop().create_server(connection, HOST, 0, backlog=4096)
    return cast(int, server.sockets[0].getsockname()[1])


class _Answering(asyncio.Protocol):
    """A connection of the engine: takes one request after another, and keeps no byte of a body."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.head = b""
        self.left = 0  # bytes of the body that are still to come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self.left:
            self.left -= len(data)
        else:
            self.head += data
            end = self.head.find(b"\r\n\r\n") + 4
            if end < 4:
                return
            length = _LENGTH.search(self.head, 0, end)
            self.left = (int(length[1]) if length else 0) - (len(self.head) - end)
            self.head = self.head[:end]
        if self.left < 0:
            raise ValueError("more came than one request: its framing was not understood")
        if self.left == 0:
            head, self.head = self.head, b""
            self.engine.answer(head.split(b" ", 2)[1], self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.forget(self.transport)


class _Collecting(asyncio.Protocol):
    """Accepts spans unread; Envoy sends them chunked."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, _, body = self.received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if self.received.endswith(b"\r\n" + LAST) if length is None else len(body) >= int(length[1]):
            self.received = b""
            self.transport.write(_ACCEPTED)


class Caller(asyncio.Protocol):
    """A keep-alive connection that sends the same request whenever it is told.

    `then(caller, waited)` is called when the answer is whole; `waited` is in seconds.
    """

    def __init__(self, request: bytes, then: Callable[[Any, Any], None]) -> None:
        self.request = request
        self.then = then
        self.pending = b""
        self.since = 0.0
        self.trouble = ""
        self.leaving = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, since: float | None = None) -> None:
        """Send the request; what it waits is counted from `since`, or from this instant."""
        self.since = perf_counter() if since is None else since
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.pending:
            data = self.pending + data
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or len(data) - end < _ANSWER_BODY:
            self.pending = data
            return
        self.pending = b""
        if self.is_success(data):
            self.then(self, perf_counter() - self.since)

    def is_success(self, head: bytes) -> bool:
        """A proxy that refuses is not a fast proxy: its caller says so, and asks no more."""
        if not head.startswith(b"HTTP/1.1 200"):
            reason = _REASON.search(head)
            words = head.split(b"\r\n", 1)[0] + (b" " + reason[1] if reason else b"")
            self.trouble = words.decode("latin-1")
        return not self.trouble

    def leave(self) -> None:
        self.leaving = True
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.leaving:
            self.trouble = self.trouble or "the connection was closed"


class FirstByte(Caller):
    """Takes short streams; `waited` is until the first chunk."""

    def data_received(self, data: bytes) -> None:
        arrived = perf_counter()
        if not self.pending and not self.is_success(data):
            return
        if b"data: " in data:
            self.waited = arrived - self.since
        self.pending += data
        if self.pending.endswith(LAST):
            self.pending = b""
            self.then(self, self.waited)


class Listener(Caller):
    """Takes one stream; `then(caller, chunks)` is called with the number of chunks in each piece."""

    def data_received(self, data: bytes) -> None:
        if not self.pending and not self.is_success(data):
            return
        self.pending = b"."
        if chunks := data.count(b"data: "):
            self.then(self, chunks)
