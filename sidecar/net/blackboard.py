"""This sidecar's place at the blackboard of its mesh: one call of `balance/blackboard.lua` a second.

Each call carries what `ask` gives and hands what all know to `take`; a change is posted at once (`hurry`).
What peers publish goes to `hear` at once. While Redis is away nothing is handed on: `connected` and `age_s`
say so, and whoever took the last view decides what it is still worth. What a failed call carried is lost.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from importlib import resources
from typing import TYPE_CHECKING, Any, Final, Protocol

from sidecar.balance.blackboard import Memory, Post, Terms, View, decode, decode_notice, encode
from sidecar.net.pauses import LONGEST_S, Pauses

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from sidecar.balance.blackboard import Notice
    from sidecar.clock import Clock
    from sidecar.net.complaints import Complaints

EVERY_S: Final = 1.0
APART_S: Final = 0.05  # between two calls, however hurried
_SOONEST_S, _SPREAD = 0.9, 0.2 / 0.9  # a tenth to both sides
_WITHIN_S: Final = 2.0  # for one call: members who are silent for 5 s are gone
# What is said when they end.
_POSTING: Final = "the mesh's blackboard is out of reach"
_LISTENING: Final = "what peers publish is not heard"

log = logging.getLogger("headgate.blackboard")


class Script(Protocol):
    """The script at a server: `net.redis.Script`. Whatever fails raises, and ends it."""

    async def run(self, arguments: Sequence[bytes]) -> list[Any]: ...

    async def close(self) -> None: ...


class Line(Protocol):
    """The channel of its notices: `net.redis.Channel`. Whatever fails raises, and ends it."""

    async def open(self) -> None: ...

    async def hear(self, within_s: float) -> bytes | None: ...

    async def close(self) -> None: ...


def source() -> str:
    """The script."""
    return resources.files("sidecar.balance").joinpath("blackboard.lua").read_text()


class Blackboard:
    """What `pod` says in `mesh`, and hears. `script` and `line` make connections that are not open yet."""

    def __init__(
        self,
        script: Callable[[], Script],
        line: Callable[[], Line],
        mesh: str,
        pod: str,
        *,
        terms: Terms,
        ask: Callable[[], Post],
        take: Callable[[View], None],
        hear: Callable[[Notice], None],
        clock: Clock,
        complaints: Complaints,
        secret: str = "",
    ) -> None:
        self.terms = terms  # may be replaced at any time
        self._script = script
        self._line = line
        self._mesh = mesh
        self._pod = pod
        self._ask = ask
        self._take = take
        self._hear = hear
        self._clock = clock
        self._complaints = complaints
        self._secret = secret  # ours, until the mesh's is known
        self._memory = Memory()
        self._last = float("-inf")  # when the call that gave the last view was sent
        self._hurried = asyncio.Event()
        self._calling = asyncio.Lock()
        self._has_left = False
        self._well: set[str] = set()  # which of the two loops work

    @property
    def connected(self) -> bool:
        """Whether the last call was answered."""
        return _POSTING in self._well

    @property
    def age_s(self) -> float:
        """Seconds since the last view; infinite before the first."""
        return self._clock.now() - self._last

    def hurry(self) -> None:
        """Post soon: at once, or with others that are in a hurry, 20 times a second at most."""
        self._hurried.set()

    def move(self, script: Callable[[], Script], line: Callable[[], Line]) -> None:
        """Meet at another Redis from now on."""
        self._script, self._line = script, line
        self.hurry()

    async def run(self) -> None:
        """Post and listen for ever; after `leave` nothing is posted."""
        async with asyncio.TaskGroup() as both:
            both.create_task(self._keep(self._post_all, _POSTING))
            both.create_task(self._keep(self._listen, _LISTENING))

    async def leave(self) -> None:
        """Tell the mesh that this pod goes, and post nothing any more. Takes 2 s at most; never raises."""
        self._has_left = True
        self.hurry()
        try:
            async with asyncio.timeout(_WITHIN_S), self._calling:
                script = self._script()
                try:
                    await script.run(self._arguments(self._ask(), leave=True))
                finally:
                    await script.close()
        except Exception as error:
            log.warning("the mesh is not told that this pod goes: %s", error or type(error).__name__)

    async def _keep(self, work: Callable[[], Awaitable[None]], complaint: str) -> None:
        """Do this again and again, with pauses where it fails."""
        pauses, complained = Pauses(self._clock), False
        while not self._has_left:
            began = self._clock.now()
            try:
                await work()
                pauses.reset()
                continue
            except Exception as error:
                if complaint in self._well or not complained:
                    log.warning("%s: %s", complaint, error or type(error).__name__)
                complained = True
            finally:
                self._well.discard(complaint)
            if self._clock.now() - began > LONGEST_S:
                pauses.reset()
            await pauses.wait()

    # Posting.

    async def _post_all(self) -> None:
        """Until it fails, or is to go through another connection."""
        opener = self._script
        script = opener()
        try:
            while self._script is opener and not self._has_left:
                due = self._clock.now() + self._clock.jitter(EVERY_S * _SOONEST_S, _SPREAD)
                self._hurried.clear()
                async with self._calling:
                    await self._post(script)
                await self._rest(due)
        finally:
            await script.close()

    async def _post(self, script: Script) -> None:
        post = self._ask()
        self._memory.forget(post.uneject)
        arguments = self._arguments(post)
        sent = self._clock.now()
        async with asyncio.timeout(_WITHIN_S):
            view = decode(await script.run(arguments))
        self._memory.heard(self._pod, view, sent)
        self._secret = view.secret or self._secret
        self._last = sent
        if not self.connected:
            log.info("the mesh's blackboard answers: %d members", len(view.members))
        self._well.add(_POSTING)
        self._take(view)

    def _arguments(self, post: Post, *, leave: bool = False) -> Sequence[bytes]:
        held = self._memory.held(self._clock.now())
        return encode(self._mesh, self._pod, post, self.terms, held=held, secret=self._secret, leave=leave)

    async def _rest(self, due: float) -> None:
        await asyncio.sleep(APART_S)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - self._clock.now())):
                await self._hurried.wait()

    # Listening.

    async def _listen(self) -> None:
        """Until it fails, or is to go through another channel."""
        opener = self._line
        line = opener()
        try:
            await line.open()
            self._well.add(_LISTENING)
            while self._line is opener and not self._has_left:
                message = await line.hear(EVERY_S)
                if message is not None:
                    self._pass(message)
        finally:
            await line.close()

    def _pass(self, message: bytes) -> None:
        try:
            notice = decode_notice(message)
        except ValueError:
            self._complaints.warn("a peer", "its notice cannot be read")
            return
        if notice.member is None or notice.member.pod != self._pod:
            self._hear(notice)
