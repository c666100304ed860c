"""Shares with the peers of a mesh who was refused and when it is to return: each knows whoever comes back.

Off the request path, and nothing waits for it: every 50 ms what is new goes out as a few messages, and what
peers say is taken in between. While there is no channel less is known, and the latest news wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, Protocol

from sidecar.flow.news import News, decode, encode
from sidecar.net.pauses import LONGEST_S, Pauses

if TYPE_CHECKING:
    from collections.abc import Callable

    from sidecar.clock import Clock
    from sidecar.flow.invitations import Invitations
    from sidecar.net.complaints import Complaints

EVERY_S: Final = 0.05

log = logging.getLogger("headgate.board")


class Line(Protocol):
    """What the board needs of a channel: `net.redis.Channel`. Whatever fails raises, and ends it."""

    async def open(self) -> None: ...

    async def publish(self, message: bytes) -> None: ...

    async def hear(self, within_s: float) -> bytes | None: ...

    async def close(self) -> None: ...


class Board:
    """What `pod` and its peers know. `line` makes a channel that is not open yet."""

    def __init__(
        self,
        line: Callable[[], Line],
        pod: str,
        invitations: Invitations,
        clock: Clock,
        complaints: Complaints,
    ) -> None:
        self.connected = False
        self.news = invitations.news = News()
        self._line = line
        self._pod = pod
        self._invitations = invitations
        self._clock = clock
        self._complaints = complaints

    def move(self, line: Callable[[], Line]) -> None:
        """Share through another channel from now on."""
        self._line = line

    async def run(self) -> None:
        """Share for ever."""
        pauses, complained = Pauses(self._clock), False
        while True:
            began = self._clock.now()
            try:
                await self._share(self._line)
                pauses.reset()
                continue
            except Exception as error:
                if self.connected or not complained:
                    log.warning("nothing is shared with peers: %s", error or type(error).__name__)
                complained = True
            finally:
                self.connected = False
            if self._clock.now() - began > LONGEST_S:
                pauses.reset()
            await pauses.wait()

    async def _share(self, opener: Callable[[], Line]) -> None:
        """Until it fails, or is to go through another channel."""
        line = opener()
        try:
            await line.open()
            await line.publish(encode(self._pod, (), self._clock.now()))  # it may be that we must not
            self.connected = True
            log.info("refusals are shared with peers")
            while self._line is opener:
                await self._tell(line)
                await self._listen(line)
        finally:
            await line.close()

    async def _tell(self, line: Line) -> None:
        waiting = len(self.news)  # what comes meanwhile is for the next time
        while waiting > 0:
            news = self.news.take()
            waiting -= len(news)
            try:
                await line.publish(encode(self._pod, news, self._clock.now()))
            except BaseException:
                self.news.dropped += len(news)
                raise

    async def _listen(self, line: Line) -> None:
        now, until = self._clock.now, self._clock.now() + EVERY_S
        while (left := until - now()) > 0:
            message = await line.hear(left)
            if message is not None:
                self._take(message)
                await asyncio.sleep(0)  # what is here already is read without a pause

    def _take(self, message: bytes) -> None:
        now = self._clock.now()
        try:
            pod, news = decode(message, now)
        except ValueError:
            self._complaints.warn("a peer", "its message cannot be read")
            return
        if pod != self._pod:
            self._invitations.hear(news, now)
