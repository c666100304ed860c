"""One process: started so that it cannot outlive us, read line by line, ended politely and then not.

The kernel kills it when we die, even by SIGKILL (PR_SET_PDEATHSIG). It has a session of its own, so that the
terminal's Ctrl-C reaches us alone and the order of the end is ours.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from asyncio import FIRST_COMPLETED
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Self

# Longer lines are cut into pieces of this size: what a child writes must not fill our memory.
MOST_LINE_BYTES: Final = 16 * 1024
# How long a pipe may stay open after all of a child's session was killed, before we stop listening.
_LAST_WORDS_S: Final = 1.0

_PR_SET_PDEATHSIG: Final = 1
# Loaded before any fork: between fork and exec nothing may allocate or lock more than it must.
_LIBC: Final = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Child:
    """A running process whose output, both streams, goes to a `Lines`."""

    def __init__(self, process: Process, output: asyncio.ReadTransport, lines: "Lines") -> None:
        self._process = process
        self._output = output
        self._lines = lines
        self._exit = asyncio.ensure_future(process.wait())

    @classmethod
    async def start(cls, argv: Sequence[str], env: Mapping[str, str], on_line: Callable[[str], None]) -> Self:
        lines = Lines(on_line)
        # Not asyncio's own pipe: its wait() ends only when the pipe does, and a grandchild may hold that.
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        output, _ = await loop.connect_read_pipe(lambda: lines, os.fdopen(reading, "rb", 0))
        parent = os.getpid()
        try:
            process = await asyncio.create_subprocess_exec(
                *argv,
                env={**os.environ, **env},
                stdin=DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                preexec_fn=lambda: _die_with(parent),
            )
        except BaseException:
            output.close()
            raise
        finally:
            os.close(writing)
        return cls(process, output, lines)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return not self._exit.done()

    async def wait(self) -> int:
        """Its exit status once it has ended; minus the signal's number if one ended it."""
        return await asyncio.shield(self._exit)

    def kill(self) -> None:
        """SIGKILL to this process alone. Safe when it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self, within_s: float, hurry: asyncio.Event) -> None:
        """SIGTERM; SIGKILL after `within_s` or on `hurry`. What it started goes with it. Safe to repeat."""
        if self.is_running:
            self._process.terminate()
            hurried = asyncio.ensure_future(hurry.wait())
            await asyncio.wait({self._exit, hurried}, timeout=within_s, return_when=FIRST_COMPLETED)
            hurried.cancel()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        await self._exit
        await asyncio.wait({self._lines.ended}, timeout=_LAST_WORDS_S)
        self._output.close()


class Lines(asyncio.Protocol):
    """Cuts bytes into lines of text."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        while len(self._rest) >= MOST_LINE_BYTES:
            lines.append(self._rest[:MOST_LINE_BYTES])
            self._rest = self._rest[MOST_LINE_BYTES:]
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def connection_lost(self, error: Exception | None) -> None:
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
        if not self.ended.done():
            self.ended.set_result(None)


def _die_with(parent: int) -> None:
    if _LIBC is None:
        return
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Too late if the parent died before the line above.
    if os.getppid() != parent:
        os._exit(1)
