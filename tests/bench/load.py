"""Load on a port, and what it cost: closed loops, open loops at a constant rate, streams.

A closed loop sends the next request when the answer to the last is whole, so a slow proxy is asked less: good
for capacity and cost. An open loop sends when the schedule says so, and counts each wait from that instant:
good for latency, since whoever waits behind a slow answer is counted too.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import shutil
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, TypeVar

from tests.bench.machine import LIBC, OURS, Broken, Cpu, cpu, follow
from tests.bench.peers import HOST, Caller, Listener

_WRK: Final = """
local file = io.open("{body}", "rb")
local raw = file:read("*a")
file:close()
function request() return raw end
"""
_SETTLE_S: Final = 0.2
_BEGIN_WITHIN_S: Final = 10.0
_AT_ONCE: Final = 50  # streams that begin: more would overrun somebody's queue of new connections

C = TypeVar("C", bound=Caller)


@dataclass(frozen=True, slots=True)
class Spent:
    """What some processes spent while `count` things passed in `wall_s` seconds."""

    cpu: Cpu
    count: int
    wall_s: float

    @property
    def busy(self) -> float:
        """How much of its core: 1 is all."""
        return self.cpu.total / self.wall_s


async def watch(pids: Sequence[int], count: Callable[[], int], seconds: float) -> Spent:
    """Measure for so long, once it has begun and warmed up for a quarter of that."""
    await _more(count, count())
    await asyncio.sleep(seconds / 4)
    counted, spent, start = count(), cpu(pids), perf_counter()
    await asyncio.sleep(seconds)
    await _more(count, counted)
    now, spent, wall_s = count(), cpu(pids) - spent, perf_counter() - start
    return Spent(spent, now - counted, wall_s)


async def _more(count: Callable[[], int], than: int) -> None:
    end = perf_counter() + _BEGIN_WITHIN_S
    while count() <= than:
        if perf_counter() > end:
            raise Broken("nothing passes")
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def calling(
    kind: type[C], port: int, then: Callable[[C, Any], None]
) -> AsyncIterator[Callable[[bytes], Awaitable[C]]]:
    """Callers: `await connect(request)` is one more, that has not asked. All leave with the block."""
    loop = asyncio.get_running_loop()
    callers: list[C] = []

    async def connect(request: bytes) -> C:
        _, caller = await loop.create_connection(lambda: kind(request, then), HOST, port)
        callers.append(caller)
        return caller

    gc.collect()
    try:
        yield connect
    finally:
        troubles = {caller.trouble for caller in callers if caller.trouble}
        for caller in callers:
            caller.leave()
        await asyncio.sleep(_SETTLE_S)  # until the proxy has seen it
        if troubles:
            raise Broken(f"port {port}: {', '.join(sorted(troubles))}")


@contextlib.asynccontextmanager
async def streaming(
    port: int, requests: Sequence[bytes], hear: Callable[[Listener, int], None]
) -> AsyncIterator[list[Listener]]:
    """Open streams, one for each of these requests, once all have begun; `hear` is told of later chunks."""
    begun = 0

    def begin(listener: Listener, _: int) -> None:
        nonlocal begun
        begun += 1
        listener.then = hear

    async with calling(Listener, port, begin) as connect:
        listeners: list[Listener] = []
        for request in requests:
            while len(listeners) - begun >= _AT_ONCE:
                await asyncio.sleep(0.001)
            listeners.append(await connect(request))
            listeners[-1].ask()
        while begun < len(listeners):
            await asyncio.sleep(0.001)
        yield listeners


@contextlib.asynccontextmanager
async def closed_loop(port: int, connections: int, request: bytes, folder: Path) -> AsyncIterator[None]:
    """Callers that never pause: wrk if there is one, which costs less and so can ask more."""
    if not shutil.which("wrk"):
        async with waits_closed(port, connections, request):
            yield
        return
    body, script = folder / "request", folder / "wrk.lua"
    body.write_bytes(request)
    script.write_text(_WRK.format(body=body))
    wrk = await asyncio.create_subprocess_exec(
        *("wrk", "-t1", f"-c{connections}", "-d600s", "--timeout", "10s", "-s", str(script)),
        f"http://{HOST}:{port}/",
        stdout=asyncio.subprocess.PIPE,
        preexec_fn=follow(OURS),
    )
    try:
        yield
        wrk.send_signal(signal.SIGINT)
        said, _ = await wrk.communicate()
        for line in said.decode().splitlines():
            if "Non-2xx" in line or "Socket errors" in line:
                raise Broken(f"port {port}: {line.strip()}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            wrk.kill()
        await wrk.wait()


@contextlib.asynccontextmanager
async def waits_closed(port: int, connections: int, request: bytes) -> AsyncIterator[list[float]]:
    """Callers of our own that never pause, and how long each answer took, in seconds."""
    waits: list[float] = []

    def again(caller: Caller, waited: float) -> None:
        waits.append(waited)
        caller.ask()

    async with calling(Caller, port, again) as connect:
        for _ in range(connections):
            (await connect(request)).ask()
        yield waits


async def waits_open(
    port: int, rate: float, seconds: float, request: bytes, connections: int
) -> list[float]:
    """How long each answer took, in seconds from when it was due to be asked for, at `rate` a second.

    A request whose turn comes while every connection is waiting goes on the next that is free, and its wait
    includes that. The first fifth warms up and is left out.
    """
    waits: list[float] = []
    late: deque[float] = deque()
    interval = round(1e9 / rate) / 1e9  # as the timer has it
    wanted = int(rate * seconds)
    done = asyncio.Event()

    def answered(caller: Caller, waited: float) -> None:
        waits.append(waited)
        if len(waits) >= wanted:
            done.set()
        if late:
            caller.ask(late.popleft())
        else:
            idle.append(caller)

    async with calling(Caller, port, answered) as connect:
        idle = deque([await connect(request) for _ in range(connections)])
        due = perf_counter() + interval

        def send(turns: int) -> None:
            nonlocal due
            for _ in range(turns):
                if idle:
                    idle.popleft().ask(due)
                else:
                    late.append(due)
                due += interval

        with metronome(due, interval, send):
            async with asyncio.timeout(seconds * 3 + 5):
                await done.wait()
    return waits[len(waits) // 5 :]


class _Interval(ctypes.Structure):
    """struct itimerspec: seconds and nanoseconds, of the interval and of the first expiration."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


@contextlib.contextmanager
def metronome(first: float, interval: float, beat: Callable[[int], None]) -> Iterator[None]:
    """Call `beat` with the number of intervals since it was called last, from `first` on.

    By a timerfd: the timers of the loop count whole milliseconds, ten requests of a busy proxy.
    """
    relative, absolute = os.O_NONBLOCK | os.O_CLOEXEC, 1  # TFD_NONBLOCK and so on; TFD_TIMER_ABSTIME
    timer = LIBC.timerfd_create(1, relative)  # CLOCK_MONOTONIC, as perf_counter
    every_ns, first_ns = round(interval * 1e9), round(first * 1e9)
    when = _Interval(*divmod(every_ns, 10**9), *divmod(first_ns, 10**9))
    loop = asyncio.get_running_loop()

    def expired() -> None:
        with contextlib.suppress(BlockingIOError):
            beat(int.from_bytes(os.read(timer, 8), "little"))

    try:
        if LIBC.timerfd_settime(timer, absolute, ctypes.byref(when), None):
            raise OSError(ctypes.get_errno(), "timerfd_settime")
        loop.add_reader(timer, expired)
        yield
    finally:
        loop.remove_reader(timer)
        os.close(timer)
