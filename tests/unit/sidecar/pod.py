"""A whole sidecar in one process, on unix sockets, and callers of it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sidecar.app import App

WITHIN_S = 20.0


class Pod:
    """A sidecar in `folder`, whose engine is not there. It has `env` and may open `descriptors` files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "sidecar.yaml"
        self.env: Mapping[str, str] = {}
        self.descriptors: int | None = None

    def write(self, *lines: str, engine: str = "", **addresses: str) -> None:
        """A configuration on sockets in the folder, with `lines` added, and `engine` to that section."""
        places = {name: f"unix:{self.folder}/{name}" for name in ("listen", "admin")} | addresses
        text = [f"{key}: {value}" for key, value in places.items()]
        if not any(line.startswith("drain_notice_s") for line in lines):
            text.append("drain_notice_s: 0")  # nobody balances over it
        text.append(f"engine: {{address: unix:{self.folder}/engine{engine}}}")
        self.file.write_text("\n".join([*text, *lines]))

    def app(self, *lines: str, engine: str = "") -> App:
        self.write(*lines, engine=engine)
        return App(self.file, self.env, self.descriptors)

    @asynccontextmanager
    async def serving(self, *lines: str, engine: str = "") -> AsyncIterator[App]:
        """A sidecar that serves within the block, and must leave in good order after it."""
        app = self.app(*lines, engine=engine)
        running = asyncio.create_task(app.run())
        await until(lambda: app.plane.lifecycle.serving or running.done())
        try:
            yield app
        finally:
            app.drain()
            assert await asyncio.wait_for(running, WITHIN_S) == 0


async def until(condition: Callable[[], object]) -> None:
    """Let others run until `condition` holds."""
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.001)


def in_loop(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


class Caller:
    """A client connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def of(cls, pod: Pod) -> "Caller":
        return cls(*await asyncio.open_unix_connection(f"{pod.folder}/listen"))

    def send(self, data: bytes) -> None:
        self._writer.write(data)

    async def answer(self) -> tuple[int, str]:
        """Status and reason. Closes."""
        async with asyncio.timeout(WITHIN_S):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        self._writer.close()
        lines = head.splitlines()
        reasons = [line.removeprefix("x-headgate-reason: ") for line in lines if "x-headgate-reason" in line]
        return int(lines[0].split()[1]), "".join(reasons)


CHUNKED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(size: int) -> bytes:
    return b"%x\r\n%b\r\n" % (size, b"x" * size)
