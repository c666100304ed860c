"""Warnings about engines, each kind once in a while: an engine can be wrong a thousand times a second."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_EVERY_S: Final = 10.0
_KINDS: Final = 256  # remembered at most

log = logging.getLogger("headgate.engine")


class Complaints:
    """`now` is the monotonic clock."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._kinds: dict[str, tuple[float, int]] = {}  # silent until, and how often it was not said

    def warn(self, engine: str, why: str) -> None:
        """Log that `engine` is wrong in this way, unless that was said a moment ago."""
        kind, now = f"{engine}: {why}", self._now()
        until, unsaid = self._kinds.get(kind, (now, 0))
        if now < until:
            self._kinds[kind] = until, unsaid + 1
            return
        if len(self._kinds) >= _KINDS:
            self._kinds.clear()
        self._kinds[kind] = now + _EVERY_S, 0
        log.warning("%s%s", kind, f" (and {unsaid} times more before)" if unsaid else "")
