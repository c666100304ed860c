"""Looks at the engine's metrics page now and then. Off the request path.

One look after the other, each on a connection of its own. One that fails says nothing of the engine, neither
that it is ill nor that it is full: what was known just grows old. Then the pauses grow too.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from sidecar.net.probe import get

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
    from sidecar.balance.engine_page import EnginePage
    from sidecar.clock import Clock
    from sidecar.settings import Engine

_MAX_PAGE: Final = 8 * 1024 * 1024
_PATIENCE_S: Final = 5.0  # the longest pause between two looks that fail, unless the usual one is longer
_JITTER: Final = 0.1

log = logging.getLogger("headgate.scrape")


async def watch_load(engine: Engine, endpoint: Endpoint, page: EnginePage, clock: Clock) -> None:
    """Keep `endpoint.load` and `page` true to what the engine shows, for ever."""
    usual = pause = engine.metrics.interval_s
    complained = False
    while True:
        try:
            known = await _look(engine, endpoint, page, clock)
            problem = None if known else "its page has no metric that is known"
            pause = usual
        except Exception as error:
            problem = str(error) or "it does not answer in time"
            pause = min(pause * 2, max(usual, _PATIENCE_S))
        if problem and not complained:
            log.warning("the load of engine %s cannot be had: %s", endpoint.name, problem)
        complained = problem is not None
        await asyncio.sleep(clock.jitter(pause, _JITTER))


async def _look(engine: Engine, endpoint: Endpoint, page: EnginePage, clock: Clock) -> bool:
    """Whether the page says something of the engine's load."""
    metrics = engine.metrics
    asked = clock.now()  # what it says may be as old
    head, body = await get(engine.metrics_address, metrics.path, metrics.max_age_s, _MAX_PAGE)
    if head.status != 200:
        raise ValueError(f"it answers {head.status}")
    if b"content-encoding" in head.noted:
        raise ValueError("its page is compressed, though that was not asked for")
    load = page.take(body, head.noted.get(b"content-type", b"text/plain"), asked)
    if load is not None:
        endpoint.load.take(load)
    return load is not None
