"""Keeps parts running, tier by tier.

1. Parts of a tier start together, once every part of the tiers below is ready.
2. A part that dies is started again, after the wait that `Backoff` names, whatever the others do.
3. A part that cannot be kept alive ends the whole: `start` or `watch` raises `PartFailed`.
4. One that is lost is killed and stays dead until the end, and that is no failure.
5. The end is in the opposite order. To end a part is to cancel its keeper, which ends the process first.
"""

import asyncio
from asyncio import FIRST_COMPLETED
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self

from mesh import exits
from mesh.local import machine
from mesh.local.backoff import Backoff
from mesh.local.child import Child
from mesh.local.plan import Part, tiers

LAST_LINES: Final = 20
_PROBE_EVERY_S: Final = 0.05


class Audience(Protocol):
    """Who is told what happens."""

    def starting(self, part: Part) -> None: ...
    def ready(self, part: Part, took_s: float) -> None: ...
    def died(self, part: Part, how: str, again_in_s: float) -> None: ...
    def line(self, part: Part, text: str) -> None: ...


class PartFailed(Exception):
    """A part that cannot be kept alive, with its last words."""

    def __init__(self, part: Part, how: str, last_lines: Sequence[str]) -> None:
        super().__init__(f"{part.name} {how}")
        self.last_lines = tuple(last_lines)


class Supervisor:
    """A context: leaving it ends every part."""

    def __init__(self, parts: Sequence[Part], audience: Audience) -> None:
        self._hurry = asyncio.Event()
        self._tiers = [[Keeper(part, audience, self._hurry) for part in tier] for tier in tiers(parts)]
        self._keeping: dict[Keeper, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for tier in reversed(self._tiers):
            tasks = [self._keeping[keeper] for keeper in tier if keeper in self._keeping]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def start(self) -> None:
        """Return when every part is ready."""
        for tier in self._tiers:
            for keeper in tier:
                self._keeping[keeper] = asyncio.get_running_loop().create_task(keeper.keep())
            await self._unless_one_fails(asyncio.gather(*(keeper.has_been_ready.wait() for keeper in tier)))

    async def watch(self) -> None:
        """Raise when a part is given up; otherwise never return."""
        await self._unless_one_fails(asyncio.get_running_loop().create_future())

    def hurry(self) -> None:
        """Let the parts that are ending, and those that will, have no more time."""
        self._hurry.set()

    def pids(self) -> dict[str, int]:
        return {keeper.part.name: keeper.pid for tier in self._tiers for keeper in tier}

    def lose(self, name: str) -> None:
        """Kill this part, and do not start it again."""
        next(keeper for tier in self._tiers for keeper in tier if keeper.part.name == name).lose()

    async def _unless_one_fails(self, wanted: asyncio.Future[Any]) -> None:
        try:
            done, _ = await asyncio.wait({wanted, *self._keeping.values()}, return_when=FIRST_COMPLETED)
        finally:
            wanted.cancel()
            # Heard out, or asyncio reports what nobody asked for.
            await asyncio.gather(wanted, return_exceptions=True)
        for each in done - {wanted}:
            each.result()  # a keeper ends only by failing


class Keeper:
    """Keeps one part running."""

    def __init__(self, part: Part, audience: Audience, hurry: asyncio.Event) -> None:
        self.part = part
        self.pid = 0
        self.has_been_ready = asyncio.Event()
        self._audience = audience
        self._hurry = hurry
        self._is_lost = False
        self._child: Child | None = None
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)

    def lose(self) -> None:
        """Kill it, and do not start it again."""
        self._is_lost = True
        if self._child is not None:
            self._child.kill()

    async def keep(self) -> None:
        """Start it again and again; raise PartFailed when that is hopeless."""
        backoff = Backoff()
        while not self._is_lost:
            life = await self._live()
            if self._is_lost:
                break
            wait_s = backoff.after(life.lasted_s, was_ready=life.was_ready)
            if life.status == exits.USAGE:
                wait_s = None  # bad words on its command line or in its file stay bad
            if wait_s is None:
                raise PartFailed(self.part, life.end, self._last_lines)
            self._audience.died(self.part, life.end, wait_s)
            await asyncio.sleep(wait_s)
        await asyncio.get_running_loop().create_future()  # dead, and kept so

    async def _live(self) -> "Life":
        clock = asyncio.get_running_loop().time
        said_ready = asyncio.Event()
        self._audience.starting(self.part)
        started = clock()
        child = await Child.start(self.part.argv, self.part.env, lambda line: self._hear(line, said_ready))
        self._child, self.pid = child, child.pid
        end = None
        try:
            was_ready = await self._becomes_ready(child, said_ready)
            if was_ready:
                self._audience.ready(self.part, clock() - started)
                self.has_been_ready.set()
                await child.wait()
            elif child.is_running:
                end = f"was not ready within {self.part.start_within_s:g} s"
        finally:
            await child.end(self.part.end_within_s, self._hurry)
        status = await child.wait()
        return Life(clock() - started, was_ready, status, end or describe(status))

    def _hear(self, line: str, said_ready: asyncio.Event) -> None:
        self._last_lines.append(line)
        self._audience.line(self.part, line)
        if self.part.ready_line is not None and self.part.ready_line in line:
            said_ready.set()

    async def _becomes_ready(self, child: Child, said_ready: asyncio.Event) -> bool:
        """False if it ended or took too long instead."""
        url = self.part.ready_url
        ready = asyncio.ensure_future(said_ready.wait() if url is None else _answered(url))
        ended = asyncio.ensure_future(child.wait())
        try:
            within_s = self.part.start_within_s
            done, _ = await asyncio.wait({ready, ended}, timeout=within_s, return_when=FIRST_COMPLETED)
            return ready in done
        finally:
            ready.cancel()
            ended.cancel()


@dataclass(frozen=True, slots=True)
class Life:
    """How one process of a part fared."""

    lasted_s: float
    was_ready: bool
    status: int
    end: str


async def _answered(url: str) -> None:
    while True:
        if await asyncio.to_thread(machine.get, url) is not None:
            return
        await asyncio.sleep(_PROBE_EVERY_S)


def describe(status: int) -> str:
    """An exit status in words."""
    return f"was killed by signal {-status}" if status < 0 else f"exited with status {status}"
