"""Places at a mesh's blackboard, through a real Valkey and its own clock."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial

import msgspec
import pytest

from sidecar.balance.blackboard import Notice, Post, Terms, View, Vote, channel, keys
from sidecar.clock import SystemClock
from sidecar.net.blackboard import Blackboard, source
from sidecar.net.complaints import Complaints
from sidecar.net.redis import Channel, Script
from sidecar.settings import Redis
from tests.harness.processes import HOST, free_port, valkey

pytestmark = pytest.mark.integration


class Place:
    """One sidecar's."""

    def __init__(self, port: int, pod: str) -> None:
        self.post = Post(payload=b"\xff of " + pod.encode(), state="serving")
        self.view: View | None = None
        self.notices: list[Notice] = []
        self._happened = asyncio.Event()
        clock = SystemClock()
        redis = Redis(url=f"redis://{HOST}:{port}/0")
        self.board = Blackboard(
            partial(Script, redis, source(), keys("demo")),
            partial(Channel, redis, channel("demo")),
            "demo",
            pod,
            terms=Terms(),
            ask=lambda: self.post,
            take=self._take,
            hear=self._hear,
            clock=clock,
            complaints=Complaints(clock.now),
        )

    def _take(self, view: View) -> None:
        self.view = view
        self._happened.set()

    def _hear(self, notice: Notice) -> None:
        self.notices.append(notice)
        self._happened.set()

    def say(self, **what: object) -> None:
        """Post this from now on, and at once."""
        self.post = msgspec.structs.replace(self.post, **what)
        self.board.hurry()

    async def until(self, condition: Callable[[], object], within_s: float = 40.0) -> None:
        """It is so after some view or notice."""
        async with asyncio.timeout(within_s):
            while not condition():
                self._happened.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._happened.wait()

    def was_told(self, pod: str, state: str) -> bool:
        told = [each.member for each in self.notices if each.member]
        return (pod, state) in [(each.pod, each.state) for each in told]

    def members(self) -> list[str]:
        return sorted(each.pod for each in self.view.members) if self.view else []


@contextlib.asynccontextmanager
async def places(port: int, count: int) -> AsyncIterator[list[Place]]:
    """Which know each other."""
    found = [Place(port, f"pod-{i}") for i in range(count)]
    tasks = [asyncio.ensure_future(each.board.run()) for each in found]
    names = [f"pod-{i}" for i in range(count)]
    try:
        for each in found:
            await each.until(lambda each=each: each.members() == names)
        yield found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_mesh_ejects_one_and_hears_who_leaves() -> None:
    async def scenario() -> None:
        port = free_port()
        with valkey(port):
            async with places(port, 3) as (a, b, c):
                a.say(votes=(Vote("pod-2", "slow", True, 1, 30_000),))
                await a.until(lambda: a.view and dict(a.view.votes).get("pod-2") in ("granted", "exists"))
                await b.until(lambda: any(each.ejected for each in b.notices))
                await c.until(lambda: c.view and [each.pod for each in c.view.ejected] == ["pod-2"])
                b.say(state="draining")
                await a.until(lambda: a.was_told("pod-1", "draining"))
                await b.board.leave()
                await a.until(lambda: a.was_told("pod-1", "left"))
                await a.until(lambda: a.members() == ["pod-0", "pod-2"])

    asyncio.run(scenario())


def test_a_mesh_is_whole_again_after_its_redis_was_lost() -> None:
    async def scenario() -> None:
        port = free_port()
        with valkey(port) as store:
            async with places(port, 3) as (a, b, c):
                a.say(votes=(Vote("pod-2", "slow", True, 1, 300_000),))
                await a.until(lambda: a.view and a.view.ejected)
                a.say(votes=())
                store.kill()
                await a.until(lambda: not a.board.connected)
                for each in (a, b, c):
                    each.view = None
                with valkey(port):  # empty, and without the script
                    for each in (a, b, c):
                        await each.until(lambda each=each: len(each.members()) == 3)
                    await b.until(lambda: b.view and [each.pod for each in b.view.ejected] == ["pod-2"])

    asyncio.run(scenario())


def test_a_server_that_says_nothing_is_noticed() -> None:
    async def scenario() -> None:
        port = free_port()
        with valkey(port) as store:
            async with places(port, 1) as (a,):
                os.kill(store.pid, signal.SIGSTOP)
                try:
                    await a.until(lambda: not a.board.connected)
                finally:
                    os.kill(store.pid, signal.SIGCONT)
                await a.until(lambda: a.board.connected)

    asyncio.run(scenario())


def test_a_script_is_sent_where_it_is_not_known() -> None:
    async def scenario() -> None:
        port = free_port()
        with valkey(port):
            redis = Redis(url=f"redis://{HOST}:{port}/0")
            script = Script(redis, "return {KEYS[1], ARGV[1]}", ("key",))
            flush = Script(redis, "return {redis.call('GET', KEYS[1])}", ("key",))
            try:
                assert await script.run((b"\xff",)) == [b"key", b"\xff"]
                await flush._client.script_flush()
                assert await script.run((b"",)) == [b"key", b""]
            finally:
                await script.close()
                await flush.close()

    asyncio.run(scenario())
