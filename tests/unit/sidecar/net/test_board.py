"""Sharing with peers, over channels that a test makes: in memory, with a loop's own time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from itertools import chain, pairwise
from typing import TYPE_CHECKING

import pytest

from sidecar.flow.invitations import Fingerprint, Invitations
from sidecar.flow.news import decode, encode
from sidecar.net.board import EVERY_S, Board
from sidecar.net.complaints import Complaints
from tests.harness.clock import FakeClock, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

WHO: Fingerprint = ("tenant", 10, 7)


class LoopClock(FakeClock):
    """The loop's own time."""

    def now(self) -> float:
        return asyncio.get_running_loop().time()


class Server:
    """Carries messages between all lines that are open, unless it is down."""

    def __init__(self) -> None:
        self.down = False
        self.deaf = False  # nothing may be published
        self.lines: list[Wire] = []  # that are open
        self.tried: list[float] = []
        self.published: list[tuple[float, bytes]] = []

    def line(self) -> Wire:
        return Wire(self)

    def fail(self) -> None:
        self.down = True
        for line in self.lines:
            line.heard.put_nowait(None)

    def messages(self, pod: str) -> list[list[int]]:
        """The sizes that stand in each message of `pod` that holds entries."""
        read = [decode(message, 0.0) for _, message in self.published]
        return [sizes for sender, news in read if sender == pod and (sizes := [who[1] for who, _ in news])]


class Wire:
    """A channel at the server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.heard: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def open(self) -> None:
        self._server.tried.append(asyncio.get_running_loop().time())
        self._check()
        self._server.lines.append(self)

    async def publish(self, message: bytes) -> None:
        self._check()
        if self._server.deaf:
            raise PermissionError("no permission to publish")
        self._server.published.append((asyncio.get_running_loop().time(), message))
        for line in self._server.lines:
            line.heard.put_nowait(message)

    async def hear(self, within_s: float) -> bytes | None:
        self._check()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                found = await self.heard.get()
                self._check()
                return found
        return None

    async def close(self) -> None:
        if self in self._server.lines:
            self._server.lines.remove(self)

    def _check(self) -> None:
        if self._server.down:
            raise ConnectionError("the server is gone")


def board(server: Server, pod: str = "pod-0") -> Board:
    clock = LoopClock()
    return Board(server.line, pod, Invitations(1, 0.5), clock, Complaints(clock.now))


@contextlib.asynccontextmanager
async def sharing(*boards: Board, connected: bool = True) -> AsyncIterator[None]:
    tasks = [asyncio.ensure_future(board.run()) for board in boards]
    while connected and not all(board.connected for board in boards):
        await asyncio.sleep(0.001)
    yield
    for task in tasks:
        task.cancel()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(each, asyncio.CancelledError) for each in ended)


def refuse(board: Board, *sizes: int) -> None:
    now = asyncio.get_running_loop().time()
    for size in sizes:
        board._invitations.remember(("t", size, size), now, now, 5.0)


def test_peers_know_who_was_refused_and_who_has_come_back() -> None:
    async def scenario() -> None:
        server = Server()
        here, there = board(server, "pod-0"), board(server, "pod-1")
        async with sharing(here, there):
            now = asyncio.get_running_loop().time()
            here._invitations.remember(WHO, now, now, 5.0)
            await asyncio.sleep(2 * EVERY_S)
            assert len(there._invitations) == 1
            assert there._invitations.returned(WHO, now + 5.0) is not None
            await asyncio.sleep(2 * EVERY_S)
            assert len(here._invitations) == 0
        assert server.lines == []

    run(scenario())


def test_nobody_hears_itself() -> None:
    async def scenario() -> None:
        server = Server()
        here = board(server)
        async with sharing(here):
            refuse(here, 1)
            await asyncio.sleep(2 * EVERY_S)
            assert server.messages("pod-0") == [[1]]
            here._invitations._refused.clear()
            server.lines[0].heard.put_nowait(server.published[-1][1])
            await asyncio.sleep(2 * EVERY_S)
            assert len(here._invitations) == 0

    run(scenario())


def test_what_is_new_goes_out_together_a_few_times_a_second() -> None:
    async def scenario() -> None:
        server = Server()
        here = board(server)
        async with sharing(here):
            for size in range(600):
                refuse(here, size)
                await asyncio.sleep(0.001)
            await asyncio.sleep(2 * EVERY_S)
            messages = server.messages("pod-0")
            assert list(chain(*messages)) == list(range(600))
            assert len(messages) <= 0.6 / EVERY_S + 2
            at = [when for when, _ in server.published[1:]]
            assert min(later - earlier for earlier, later in pairwise(at)) >= EVERY_S * 0.99

    run(scenario())


def test_who_is_refused_while_others_are_told_waits_for_the_next_time() -> None:
    """Else a busy sidecar would tell one at a time, and never listen."""

    class Busy(Wire):
        async def publish(self, message: bytes) -> None:
            if len(server.published) < 100:
                refuse(here, len(server.published))
            await super().publish(message)

    server = Server()
    here = board(server)
    here.move(lambda: Busy(server))

    async def scenario() -> None:
        async with sharing(here):
            await asyncio.sleep(10 * EVERY_S)
            assert len(server.messages("pod-0")) <= 11

    run(scenario())


def test_many_go_out_in_messages_of_bounded_size() -> None:
    async def scenario() -> None:
        server = Server()
        here = board(server)
        refuse(here, *range(600))
        async with sharing(here):
            await asyncio.sleep(2 * EVERY_S)
            assert [len(sizes) for sizes in server.messages("pod-0")] == [256, 256, 88]

    run(scenario())


def test_it_tries_for_ever_and_ever_less_often(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        server.down = True
        here = board(server)
        async with sharing(here, connected=False):
            await asyncio.sleep(300.0)
            pauses = [later - earlier for earlier, later in pairwise(server.tried)]
            assert pauses[:3] == pytest.approx([0.75, 1.5, 3.0])  # jitter at its most
            assert pauses[6:] == pytest.approx([15.0] * len(pauses[6:]))
            assert not here.connected
            server.down = False
            await asyncio.sleep(16.0)
            assert here.connected

    with caplog.at_level(logging.INFO, "headgate"):
        run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is shared with peers: the server is gone",
        "refusals are shared with peers",
    ]


def test_sharing_goes_on_after_the_server_was_gone(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        here, there = board(server, "pod-0"), board(server, "pod-1")
        async with sharing(here, there):
            server.fail()
            await asyncio.sleep(2 * EVERY_S)
            assert not here.connected
            refuse(here, 1)
            await asyncio.sleep(5.0)
            server.down = False
            await asyncio.sleep(16.0)
            assert here.connected
            assert there.connected
            assert [who[1] for who in there._invitations._refused] == [1], "it waited for the channel"
            refuse(here, 2)
            await asyncio.sleep(2 * EVERY_S)
            assert len(there._invitations) == 2

    run(scenario())
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


def test_what_is_lost_on_the_way_is_counted() -> None:
    async def scenario() -> None:
        server = Server()
        here = board(server)
        async with sharing(here):
            server.deaf = True
            refuse(here, 1, 2, 3)
            await asyncio.sleep(2 * EVERY_S)
            assert here.news.dropped == 3
            assert not here.connected

    run(scenario())


def test_a_channel_on_which_nothing_may_be_said_is_none(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        server.deaf = True
        here = board(server)
        async with sharing(here, connected=False):
            await asyncio.sleep(60.0)
            assert len(server.tried) < 12, "and it is not tried without a pause"
            assert not here.connected

    run(scenario())
    assert [record.getMessage() for record in caplog.records] == [
        "nothing is shared with peers: no permission to publish"
    ]


def test_a_message_that_cannot_be_read_is_complained_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = Server()
        here = board(server)
        async with sharing(here):
            for message in (b"what", b"is", b"this"):
                server.lines[0].heard.put_nowait(message)
            server.lines[0].heard.put_nowait(encode("pod-1", [(WHO, None)], 0.0))
            await asyncio.sleep(2 * EVERY_S)
            assert here.connected

    run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["a peer: its message cannot be read"]


def test_it_moves_to_another_channel() -> None:
    async def scenario() -> None:
        old, new = Server(), Server()
        here = board(old)
        async with sharing(here):
            here.move(new.line)
            await asyncio.sleep(2 * EVERY_S)
            assert here.connected
            assert (old.lines, len(new.lines)) == ([], 1)

    run(scenario())


def test_after_a_good_time_it_tries_again_soon() -> None:
    async def scenario() -> None:
        server = Server()
        server.down = True
        here = board(server)
        async with sharing(here, connected=False):
            await asyncio.sleep(60.0)
            server.down = False
            await asyncio.sleep(60.0)
            server.fail()
            failed, tries = asyncio.get_running_loop().time(), len(server.tried)
            await asyncio.sleep(2.0)
            assert server.tried[tries] - failed < 1.0

    run(scenario())


def test_others_run_while_many_messages_are_read() -> None:
    """What is here already is read without waiting, which must not hold up everybody else."""

    class Flood(Wire):
        left = 0

        async def hear(self, within_s: float) -> bytes | None:
            if not Flood.left:
                return await super().hear(within_s)
            Flood.left -= 1
            return encode("pod-1", [(WHO, None)], 0.0)

    async def scenario() -> None:
        server = Server()
        here = board(server)
        here.move(lambda: Flood(server))
        async with sharing(here):
            Flood.left = 1000
            server.lines[0].heard.put_nowait(encode("pod-1", (), 0.0))
            for _ in range(20):
                await asyncio.sleep(0)
            assert 980 <= Flood.left < 1000

    run(scenario())
