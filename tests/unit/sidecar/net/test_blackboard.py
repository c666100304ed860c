"""One sidecar's calls to the blackboard, over connections in memory, with a loop's own time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec

from sidecar.balance.blackboard import Post, Terms, Vote
from sidecar.net.blackboard import APART_S, Blackboard, source
from sidecar.net.complaints import Complaints
from tests.harness.clock import FakeClock, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    import pytest

    from sidecar.balance.blackboard import Notice, View

HEAD = {
    "at_ms": 10_000,
    "settled": True,
    "full": False,
    "suspects": [],
    "votes": [],
    "held": [],
    "origins": 0,
    "retries": 0,
    "secret": "theirs",
}


def now() -> float:
    return asyncio.get_running_loop().time()


class LoopClock(FakeClock):
    """The loop's own time."""

    def now(self) -> float:
        return now()


class Server:
    """Answers every call with the same, unless it is down or says nothing."""

    def __init__(self) -> None:
        self.down = self.mute = self.deaf = False
        self.asks: list[tuple[float, dict[str, Any]]] = []
        self.open = 0  # connections
        self.slow_s = 0.0  # what is sent from now on
        self.tried: list[float] = []
        self.tickets: list[list[bytes]] = [[], []]
        self.heard: asyncio.Queue[bytes] = asyncio.Queue()

    def script(self) -> Calls:
        self.tried.append(now())
        self.open += 1
        return Calls(self)

    def line(self) -> Hears:
        self.open += 1
        return Hears(self)


class Calls:
    """The script at a server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def run(self, arguments: Sequence[bytes]) -> list[Any]:
        server = self._server
        if server.down:
            raise ConnectionError("the server is gone")
        if server.mute:
            await asyncio.Event().wait()
        if server.slow_s:
            await asyncio.sleep(server.slow_s)
        server.asks.append((now(), msgspec.msgpack.decode(arguments[2])))
        return [msgspec.msgpack.encode(HEAD), [], *server.tickets, []]

    async def close(self) -> None:
        self._server.open -= 1


class Hears:
    """The channel at a server."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def open(self) -> None:
        if self._server.down or self._server.deaf:
            raise PermissionError("no permission to subscribe")

    async def hear(self, within_s: float) -> bytes | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                return await self._server.heard.get()
        return None

    async def close(self) -> None:
        self._server.open -= 1


class Pod:
    """What is around one."""

    def __init__(self, server: Server) -> None:
        self.post = Post(payload=b"", state="serving")
        self.views: list[tuple[float, View]] = []
        self.notices: list[Notice] = []
        clock = LoopClock()
        self.board = Blackboard(
            server.script,
            server.line,
            "demo",
            "pod-0",
            terms=Terms(),
            ask=lambda: self.post,
            take=lambda view: self.views.append((now(), view)),
            hear=self.notices.append,
            clock=clock,
            complaints=Complaints(clock.now),
            secret="ours",
        )


@contextlib.asynccontextmanager
async def at(server: Server) -> AsyncIterator[Pod]:
    """One that posts and listens in the block."""
    pod = Pod(server)
    task = asyncio.ensure_future(pod.board.run())
    await asyncio.sleep(0.001)
    yield pod
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert server.open == 0


def gaps(times: Sequence[float]) -> list[float]:
    return [round(there - here, 3) for here, there in pairwise(times)]


def test_the_script_is_there() -> None:
    assert source().startswith("-- The shared state of a mesh")


def test_it_posts_each_second() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            assert pod.board.connected
            await asyncio.sleep(5.0)
            assert set(gaps([when for when, _ in server.asks])) == {1.1}, "the clock draws the longest"
            assert len(pod.views) == len(server.asks) == 5
            assert [ask["secret"] for _, ask in server.asks[:2]] == ["ours", "theirs"]
            assert round(pod.board.age_s, 3) == round(5.001 - 4.4, 3)
            pod.board.terms = Terms(max_percent=7)
            await asyncio.sleep(1.0)
            assert server.asks[-1][1]["max_percent"] == 7
        assert not pod.board.connected

    run(scenario())


def test_it_can_be_hurried() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            await asyncio.sleep(0.5)
            began = now()
            pod.board.hurry()
            await asyncio.sleep(0)
            for _ in range(100):
                pod.board.hurry()
                await asyncio.sleep(0.01)
            times = [when for when, _ in server.asks if when >= began]
            assert times[0] == began
            assert min(gaps(times)) >= APART_S
            assert len(times) == 21

    run(scenario())


def test_it_pauses_while_redis_is_away(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        server.down = True
        async with at(server) as pod:
            assert (pod.board.connected, pod.board.age_s) == (False, float("inf"))
            await asyncio.sleep(60.0)
            assert gaps(server.tried) == [0.75, 1.5, 3.0, 6.0, 12.0, 15.0, 15.0]
            server.down = False
            await asyncio.sleep(15.0)
            assert pod.board.connected
            server.down = True
            await asyncio.sleep(2.0)
            assert not pod.board.connected
            assert pod.board.age_s > 0.9
            await asyncio.sleep(60.0)

    with caplog.at_level(logging.INFO, "headgate"):
        run(scenario())
    lines = [each.getMessage() for each in caplog.records if "blackboard" in each.getMessage()]
    assert lines == [
        "the mesh's blackboard is out of reach: the server is gone",
        "the mesh's blackboard answers: 0 members",
        "the mesh's blackboard is out of reach: the server is gone",
    ], "one line for each change, and none for a try"


def test_a_server_that_says_nothing_is_left() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            server.mute = True
            await asyncio.sleep(3.2)
            assert not pod.board.connected
            server.mute = False
            await asyncio.sleep(1.0)
            assert pod.board.connected

    run(scenario())


def test_without_the_channel_it_posts_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        server.deaf = True
        async with at(server) as pod:
            await asyncio.sleep(3.0)
            assert pod.board.connected
            assert len(pod.views) == 3

    with caplog.at_level(logging.INFO, "headgate"):
        run(scenario())
    assert "what peers publish is not heard: no permission" in caplog.text


def test_a_post_that_cannot_be_is_no_end() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            good, pod.post = pod.post, Post(payload=b"", state="serving", demand=float("nan"))
            await asyncio.sleep(1.2)
            assert not pod.board.connected
            pod.post = good
            await asyncio.sleep(1.0)
            assert pod.board.connected

    run(scenario())


def test_what_peers_publish_is_heard_at_once(caplog: pytest.LogCaptureFixture) -> None:
    def notice(pod: str) -> bytes:
        packed = msgspec.msgpack.encode({"at_ms": 1, "pod": pod})
        return len(packed).to_bytes(4) + packed + b"1 down 0 0\npayload"

    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            for each in (notice("pod-1"), b"nonsense", notice("pod-0"), notice("pod-2")):
                server.heard.put_nowait(each)
            await asyncio.sleep(0.001)
            heard = [each.member for each in pod.notices]
            assert [(each.pod, each.payload) for each in heard if each] == [
                ("pod-1", b"payload"),
                ("pod-2", b"payload"),
            ], "not our own"

    run(scenario())
    assert "a peer: its notice cannot be read" in caplog.text


def test_tickets_it_voted_for_are_announced_again() -> None:
    async def scenario() -> None:
        server = Server()
        lines = [b"pod-1", b"slow pod-0", b"pod-2", b"slow x"]
        server.tickets = [[b"pod-1", b"16000", b"pod-2", b"99000"], lines]
        async with at(server) as pod:
            pod.post = Post(payload=b"", state="serving", votes=(Vote("pod-1", "slow", True, 1, 6_000),))
            server.tickets = [[], []]
            await asyncio.sleep(2.0)
            assert server.asks[1][1]["held"] == [["pod-1", "slow", 4_900]]
            pod.post = Post(payload=b"", state="serving", uneject=("pod-1",))
            await asyncio.sleep(1.0)
            assert server.asks[2][1]["held"] == []

    run(scenario())


def test_it_leaves_once_and_for_all() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            await asyncio.sleep(0.5)
            await pod.board.leave()
            assert server.asks[-1][1]["leave"]
            count = len(server.asks)
            await asyncio.sleep(5.0)
            assert len(server.asks) == count
            assert not pod.board.connected

    run(scenario())


def test_leaving_comes_after_a_post_that_is_under_way() -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            server.slow_s = 0.5
            pod.board.hurry()
            await asyncio.sleep(0.1)
            server.slow_s = 0.0
            await pod.board.leave()
            assert [ask["leave"] for _, ask in server.asks] == [False, False, True]

    run(scenario())


def test_leaving_ends_when_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        async with at(server) as pod:
            server.mute = True
            pod.board.hurry()
            await asyncio.sleep(0.1)
            began = now()
            await pod.board.leave()
            assert now() - began <= 2.0

    run(scenario())
    assert "the mesh is not told" in caplog.text


def test_it_moves_to_another_server() -> None:
    async def scenario() -> None:
        old, new = Server(), Server()
        async with at(old) as pod:
            pod.board.move(new.script, new.line)
            await asyncio.sleep(2.0)
            assert (len(old.asks), len(new.asks)) == (1, 2)
            assert (old.open, new.open) == (0, 2)
        assert new.open == 0

    run(scenario())
