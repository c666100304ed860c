"""An engine that does wrong as it is asked to (see `faults`), and a little of its own accord.

`python -m tests.chaos.engine SEED PORT...` listens until SIGTERM, then prints a `Report` as JSON. Unasked
it hangs up on a few new connections, and now and then refuses all of them for a moment.
"""

import asyncio
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, cast

import msgspec
import uvloop

from tests.chaos.answers import ANSWERS, AT_ONCE, POISON
from tests.chaos.faults import FAULTS, WHOLE, meant
from tests.chaos.line import reset

_HANGS_UP: Final = 0.004  # of new connections
_LISTENS_S, _DEAF_S = 2.0, 0.05
_GONE_WITHIN_S: Final = 5.0
_SOON_S: Final = 0.03


@dataclass
class Report:
    """What a sidecar did to it.

    `wrong`: what it must not have sent; `again`: POSTs that came more than once, by id, which those may that
    gave way to a higher class; `open`: connections that it has left open.
    """

    wrong: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    open: int = 0


@dataclass(slots=True)
class Asked:
    """A request, as far as it is here."""

    fault: str
    size: int
    method: bytes
    request_id: bytes
    length: int  # of the body; -1: chunked
    body: bytes = b""

    @property
    def answer(self) -> bytes:
        return meant(self.request_id, self.body, self.size)


class Connection(asyncio.Protocol):
    """From a sidecar, which must send one request after the other."""

    report: Report
    chance: random.Random
    posts: set[bytes]  # that have come

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.spoilt = False  # what it sent ought to have ended the connection
        self._later: asyncio.TimerHandle | None = None
        self._came = b""
        self._asked: Asked | None = None
        self._busy = False
        self.report.open += 1
        if self.chance.random() < _HANGS_UP:
            self.hang_up()

    def connection_lost(self, exc: Exception | None) -> None:
        self.report.open -= 1
        if self._later is not None:
            self._later.cancel()

    def data_received(self, data: bytes) -> None:
        if self._busy and self._asked is None:
            self.report.wrong.append(f"{data[:120]!r} came before the answer to another one was out")
        if self._later is not None and not self._busy:
            self._later.cancel()  # it was to happen while the connection is idle
            self._later = None
        self._came += data
        if self._asked is None and not self._head():
            return
        asked = self._asked
        assert asked is not None
        if self._body(asked):
            self._asked = None
            if asked.fault not in AT_ONCE:
                self._play(asked)

    def _head(self) -> bool:
        """Take the head; whether it has come."""
        head, end, rest = self._came.partition(b"\r\n\r\n")
        if not end:
            return False
        self._came = rest
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        fault, _, size = target.partition(b"?")[2].partition(b"=")
        length = -1 if _value(head, b"transfer-encoding") else int(_value(head, b"content-length") or 0)
        request_id = _value(head, b"x-request-id")
        self._asked = Asked(fault.decode() or "models", int(size or 0), method, request_id, length)
        if self._asked.fault in AT_ONCE:
            self._play(self._asked)
        return True

    def _body(self, asked: Asked) -> bool:
        """Take what has come of the body; whether that is all."""
        came = self._came
        if asked.length >= 0:
            if len(came) < asked.length:
                return False
            asked.body, self._came = came[: asked.length], came[asked.length :]
            return True
        while b"\r\n" in came:
            digits, _, rest = came.partition(b"\r\n")
            size = int(digits, 16)
            if len(rest) < size + 2:
                break
            asked.body += rest[:size]
            self._came = came = rest[size + 2 :]
            if size == 0:
                return True
        return False

    def _play(self, asked: Asked) -> None:
        if asked.method == b"POST":
            if asked.request_id in self.posts:
                self.report.again.append(asked.request_id.decode())
            self.posts.add(asked.request_id)
        if self.spoilt:
            self.write(POISON[0])
            return
        fault = FAULTS.get(asked.fault)
        # An answer that never ends: nothing may come behind it. (One to HEAD ends with its head.)
        self._busy = fault is not None and WHOLE not in fault.outcomes and asked.method != b"HEAD"
        ANSWERS[asked.fault](self, asked)

    # What answers are made of.

    def write(self, *parts: bytes) -> None:
        self.transport.write(b"".join(parts))

    def write_slowly(self, parts: list[bytes], pause_s: float) -> None:
        """One after the other."""
        if self.transport.is_closing():
            return
        self._busy = len(parts) > 1
        self.write(parts[0])
        if self._busy:
            self.wait(pause_s, lambda: self.write_slowly(parts[1:], pause_s))

    def hang_up(self) -> None:
        """One way or the other."""
        if self.chance.random() < 0.5:
            self.transport.close()
        else:
            reset(self.transport)

    def soon(self, call: Callable[[], None]) -> None:
        """In a moment, unless the sidecar says something before."""
        self.wait(self.chance.random() * _SOON_S, call)

    def wait(self, seconds: float, call: Callable[[], None]) -> None:
        self._later = asyncio.get_running_loop().call_later(seconds, call)


def _value(head: bytes, name: bytes) -> bytes:
    return head.partition(b"\r\n%b: " % name)[2].partition(b"\r\n")[0]


async def serve(ports: list[int]) -> None:
    """Listen, with short breaks, until SIGTERM."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    listened = False
    while not stop.is_set():
        servers = [await loop.create_server(Connection, "127.0.0.1", port, backlog=1024) for port in ports]
        if not listened:
            print("ready", flush=True)
            listened = True
        try:
            async with asyncio.timeout(_LISTENS_S):
                await stop.wait()
        except TimeoutError:
            for server in servers:
                server.close()
            await asyncio.sleep(_DEAF_S)
    # What the sidecar has closed is heard of in a moment.
    for _ in range(int(_GONE_WITHIN_S / _DEAF_S)):
        if Connection.report.open:
            await asyncio.sleep(_DEAF_S)


if __name__ == "__main__":
    seed, *listening = sys.argv[1:]
    Connection.report, Connection.chance, Connection.posts = Report(), random.Random(seed), set()
    uvloop.run(serve([int(port) for port in listening]))
    print(msgspec.json.encode(Connection.report).decode(), flush=True)
