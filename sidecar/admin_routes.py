"""What the admin port answers. It runs in its own thread: what belongs to the event loop is asked there."""

from __future__ import annotations

import logging
from math import inf
from typing import TYPE_CHECKING, Final

from msgspec import to_builtins

from sidecar.config import redacted
from sidecar.net.admin import AdminReply, comes_true, json, on_loop, text
from sidecar.standing import standing

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Mapping

    from sidecar.app import App
    from sidecar.net.admin import Handler

Query = dict[str, str]

STUCK_AFTER_S: Final = 5.0
_LEVELS: Final = ("debug", "info", "warning", "error")
_DEFAULT_DECISIONS: Final = 100
_AFTER_DRAIN_S: Final = 10.0  # for the last bytes of what was cut


def routes(app: App, loop: asyncio.AbstractEventLoop) -> Mapping[tuple[str, str], Handler]:
    """Method and path to handler."""
    admin = _Admin(app, loop)
    return {
        ("GET", "/live"): admin.live,
        ("GET", "/ready"): admin.ready,
        ("GET", "/metrics"): admin.metrics,
        ("GET", "/debug/config"): admin.config,
        ("GET", "/debug/endpoints"): admin.endpoints,
        ("GET", "/debug/decisions"): admin.decisions,
        ("GET", "/debug/queue"): admin.queue,
        ("POST", "/drain"): admin.drain,
        ("PUT", "/log-level"): admin.log_level,
    }


class _Admin:
    """The handlers: query and body in, reply out."""

    def __init__(self, app: App, loop: asyncio.AbstractEventLoop) -> None:
        self._app = app
        self._loop = loop

    def live(self, query: Query, body: bytes) -> AdminReply:
        """Whether the event loop still turns. Answered off it, for a stuck one could not."""
        late = self._app.plane.late_s()
        if late < STUCK_AFTER_S:
            return text("live")
        return text(f"the event loop is stuck for {late:.0f} s", 503)

    def ready(self, query: Query, body: bytes) -> AdminReply:
        """Whether new work is welcome, and if not, why."""
        why = self._app.plane.unready()
        return text("ready") if why is None else text(why, 503)

    def metrics(self, query: Query, body: bytes) -> AdminReply:
        page, content_type = self._app.plane.metrics.render("")
        return AdminReply(200, page, content_type)

    def config(self, query: Query, body: bytes) -> AdminReply:
        """What is in force, without secrets."""
        return json(redacted(self._app.plane.config))

    def endpoints(self, query: Query, body: bytes) -> AdminReply:
        """What an engine said of its load is seconds old, or null: never."""
        endpoint, now = self._app.plane.endpoint, self._app.plane.clock.now()
        said = to_builtins(endpoint.load)
        ages = {name: now - said.pop(name) for name in ("at", "counted_at")}
        shown = {f"{name[:-2]}age_s": None if age == inf else round(age, 3) for name, age in ages.items()}
        return json(
            [
                {
                    "address": endpoint.name,
                    "healthy": endpoint.healthy,
                    "in_flight": endpoint.in_flight,
                    "load": said | shown,
                }
            ]
        )

    def decisions(self, query: Query, body: bytes) -> AdminReply:
        """What became of the last `n` exchanges, newest first."""
        n = query.get("n", str(_DEFAULT_DECISIONS))
        if not (n.isascii() and n.isdigit()):
            return json({"error": f"n: expected a number, got {n[:32]!r}"}, 400)
        return json(to_builtins(on_loop(self._loop, lambda: self._app.plane.receipts.last(int(n[:9])))))

    def queue(self, query: Query, body: bytes) -> AdminReply:
        """Who waits and why, in the order of classes and arrival; up to `n` of them."""
        n = query.get("n", str(_DEFAULT_DECISIONS))
        if not (n.isascii() and n.isdigit()):
            return json({"error": f"n: expected a number, got {n[:32]!r}"}, 400)
        return json(on_loop(self._loop, lambda: standing(self._app.plane, int(n[:9]))))

    def drain(self, query: Query, body: bytes) -> AdminReply:
        """With `wait`: answered when all that ran has ended, for whoever then stops the model server."""
        waits = query.get("wait", "") not in ("", "0", "false")
        if not (waits and self._app.plane.lifecycle.draining):  # else it would be the second time
            on_loop(self._loop, self._app.drain)
        if not waits:
            return text("draining", 202)
        plane = self._app.plane
        left_s = plane.lifecycle.left_s(plane.clock.now()) + _AFTER_DRAIN_S
        return text("drained") if comes_true(self._loop, self._app.drained, left_s) else text("cut", 504)

    def log_level(self, query: Query, body: bytes) -> AdminReply:
        """Until the next reload; the level is the query's `level` or the body."""
        level = (query.get("level") or body.decode("latin-1")).strip().lower()
        if level not in _LEVELS:
            return json({"error": f"level: expected one of {', '.join(_LEVELS)}"}, 400)
        logging.getLogger("headgate").setLevel(level.upper())
        return text(level)
