"""The two ends of a proxy benchmark: an engine that answers at once, and callers that never pause.

Both are raw protocols on uvloop, so that they cost less than what stands between them.
"""

import asyncio
import sys
from typing import cast

import uvloop

from tests.bench.hot_path import ANSWER, CHUNK, REQUEST, STREAM_HEAD

STREAM_REQUEST = REQUEST.replace(b"POST /v1/chat/completions", b"POST /v1/chat/completions?stream")
CHUNKS_PER_S = 50
LAST = b"0\r\n\r\n"


class Engine(asyncio.Protocol):
    """Answers every request at once; a streamed one with 50 chunks a second until the end of time."""

    streams: set["Engine"]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pending = b""

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while True:
            head, end, rest = self.pending.partition(b"\r\n\r\n")
            if not end:
                return
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
            if len(rest) < length:
                return
            self.pending = rest[length:]
            if b"?stream" in head[:64]:
                self.transport.write(STREAM_HEAD)
                self.streams.add(self)
            else:
                self.transport.write(ANSWER)

    def connection_lost(self, exc: Exception | None) -> None:
        self.streams.discard(self)


async def serve() -> None:
    loop = asyncio.get_running_loop()
    Engine.streams = set()
    server = await loop.create_server(Engine, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    while True:
        due = loop.time() + 1 / CHUNKS_PER_S
        for stream in list(Engine.streams):
            stream.transport.write(CHUNK)
        await asyncio.sleep(max(0.0, due - loop.time()))


class Caller(asyncio.Protocol):
    """Sends the next request when the answer to the last is whole."""

    done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pending = b""
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.pending += data
        head, end, rest = self.pending.partition(b"\r\n\r\n")
        if end and len(rest) >= 1024:
            assert head.startswith(b"HTTP/1.1 200"), head
            Caller.done += 1
            self.pending = b""
            self.transport.write(REQUEST)


class Listener(asyncio.Protocol):
    """Takes a stream."""

    done = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(STREAM_REQUEST)

    def data_received(self, data: bytes) -> None:
        Listener.done += data.count(b"data: ")


async def call(kind: type[Caller] | type[Listener], port: int, connections: int) -> None:
    """Load `port`; says on stdout how much was done whenever a line comes on stdin."""
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(kind, "127.0.0.1", port)
    print("ready", flush=True)
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(kind.done, flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["engine"]:
            uvloop.run(serve())
        case [kind, port, connections]:
            uvloop.run(call({"requests": Caller, "streams": Listener}[kind], int(port), int(connections)))
