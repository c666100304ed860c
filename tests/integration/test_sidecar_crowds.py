"""More callers than a sidecar can have open files: they wait in the kernel, and every one is answered."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness.processes import HOST, ROOT, free_port
from tests.harness.sidecars import INSTALLED, Sidecar, sidecar, sidecar_settings

pytestmark = pytest.mark.integration

FILES: Final = 128  # that the sidecar may have open
CALLERS: Final = 200
FEW_FILES: Final = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
from sidecar import __main__
sys.exit(__main__.main())
"""
PATIENCE_S: Final = 60

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def engine(port: int) -> AsyncIterator[None]:
    """One that says `well`, and keeps its connections open until the sidecar leaves."""
    there: set[asyncio.StreamWriter] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell")
        writer.close()
        there.discard(writer)

    async with await asyncio.start_server(answer, HOST, port, backlog=1024):
        yield
        async with asyncio.timeout(PATIENCE_S):
            while there:
                await asyncio.sleep(0.01)


async def connect(gate: Sidecar) -> Streams:
    listen = gate.settings["listen"]
    if listen.startswith("unix:"):
        return await asyncio.open_unix_connection(listen.removeprefix("unix:"))
    return await asyncio.open_connection(HOST, gate.port)


async def ask(streams: Streams) -> bytes:
    """The status line and the body of the answer; whoever got it leaves."""
    reader, writer = streams
    writer.write(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
    async with asyncio.timeout(PATIENCE_S):
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readexactly(4)
    writer.close()
    return head.partition(b"\r\n")[0] + b" " + body


async def until(gate: Sidecar, name: str, value: float) -> None:
    """Until a gauge of the sidecar has this value; the engine in this loop goes on meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while await asyncio.to_thread(gate.metric, name) != value:
            gate.process.fail_if_ended()


@pytest.mark.parametrize("place", ["tcp", "unix"])
@pytest.mark.parametrize("idlers", [0, 50])
def test_more_callers_than_files_are_all_answered(
    place: str, idlers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`idlers` come first and say nothing: they make room when others wait."""

    async def crowd(gate: Sidecar) -> None:
        async with engine(port):
            idle = [await connect(gate) for _ in range(idlers)]
            callers = [await connect(gate) for _ in range(CALLERS)]
            await until(gate, "headgate_accepting", 0)
            answers = await asyncio.gather(*map(ask, callers))
            assert answers == [b"HTTP/1.1 200 OK well"] * CALLERS
            for _, writer in idle:
                writer.close()
            await until(gate, "headgate_accepting", 1)

    script = tmp_path / "few_files.py"
    script.write_text(FEW_FILES)
    monkeypatch.setenv("PYTHONPATH", f"{INSTALLED}{os.pathsep}{ROOT}")
    port = free_port()
    settings = sidecar_settings(port)
    if place == "unix":
        settings["listen"] = f"unix:{tmp_path}/listen"
    with sidecar(tmp_path, settings, program=(script,)) as gate:
        asyncio.run(crowd(gate))
        gate.wait_until_idle()
        assert gate.metric("headgate_requests_total", status="200") == CALLERS
        assert gate.metric("headgate_requests_total") == CALLERS
        waits = [line for line in gate.process.text().splitlines() if "new connections wait" in line]
        assert len(waits) == 1
        assert "Too many open files" not in gate.process.text()
