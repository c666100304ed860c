"""The fault in force, and the listener of `--faults` that sets it: GET, PUT and DELETE of /fault.

An answer to PUT or DELETE means that the change is in force. The listener has its own port, since the
engine's may be what is at fault.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NoReturn

import msgspec
from aiohttp import web

from model_pod.faults import SOUND, BadFault, Hang, Slow, Spread, decode, in_force

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from model_pod.config import Address
    from model_pod.fake_engine import Pace
    from model_pod.faults import Fault, Steady

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 << 10


class Switch:
    """Holds the fault, sets the engine's pace by it, and tells who else must act when it changes."""

    def __init__(self, pace: Pace) -> None:
        self.fault: Fault = SOUND  # as it was set
        self.current: Steady = SOUND  # what of it applies
        self.pace = pace
        self.spread = Spread()
        self.healthy = asyncio.Event()  # health checks are answered
        self.healthy.set()
        # Each may be told again what it knows.
        self.followers: list[Callable[[Steady], Awaitable[None]]] = []
        self._since = 0.0
        self._changing = asyncio.Lock()
        self._news = asyncio.Event()

    async def set(self, fault: Fault) -> None:
        """Put `fault` in force in place of another. Raises OSError if a port cannot be opened again."""
        async with self._changing:
            self.fault, self.spread = fault, Spread()
            self._since = asyncio.get_running_loop().time()
            self._news.set()
            await self._turn()

    async def flap(self) -> NoReturn:
        """Turn what changes by itself."""
        while True:
            self._news.clear()
            left = None
            async with self._changing:
                try:
                    left = await self._turn()
                except OSError as error:
                    log.error("the fault cannot change: %s", error)
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._news.wait()

    async def _turn(self) -> float | None:
        """Let what applies apply; for how many seconds it does."""
        now = asyncio.get_running_loop().time()
        fault, left = in_force(self.fault, now - self._since)
        self.current = fault
        self.pace.factor = fault.factor if isinstance(fault, Slow) else 1.0
        _set(self.pace.moving, not isinstance(fault, Hang))
        _set(self.healthy, not (isinstance(fault, Hang) and fault.health == "silent"))
        for follow in self.followers:
            await follow(fault)
        return left


def _set(event: asyncio.Event, value: bool) -> None:
    if value:
        event.set()
    else:
        event.clear()


def routes(switch: Switch) -> web.Application:
    """The resource /fault."""

    def show() -> web.Response:
        return web.Response(body=msgspec.json.encode(switch.fault), content_type="application/json")

    async def get(_: web.Request) -> web.Response:
        return show()

    async def put(http: web.Request) -> web.Response:
        try:
            fault = decode(await http.read())
        except BadFault as error:
            return web.Response(status=400, text=f"This is no fault: {error}\n")
        return await change(fault)

    async def delete(_: web.Request) -> web.Response:
        return await change(SOUND)

    async def change(fault: Fault) -> web.Response:
        try:
            await switch.set(fault)
        except OSError as error:
            return web.Response(status=500, text=f"A port cannot be opened again: {error}\n")
        return show()

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes([web.get("/fault", get), web.put("/fault", put), web.delete("/fault", delete)])
    return app


@asynccontextmanager
async def listening(switch: Switch, address: Address) -> AsyncIterator[int]:
    """Take faults at `address`; the port. With the block ends the fault."""
    runner = web.AppRunner(routes(switch), access_log=None, shutdown_timeout=1)
    await runner.setup()
    turning = asyncio.create_task(switch.flap())
    try:
        await web.TCPSite(runner, address.host, address.port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
        turning.cancel()
        await asyncio.wait([turning])
        await switch.set(SOUND)
