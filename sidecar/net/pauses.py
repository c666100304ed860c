"""How long to leave alone what does not answer: longer each time, and not all sidecars at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.clock import Clock

LONGEST_S: Final = 10.0
_FIRST_S: Final = 0.5
_JITTER: Final = 0.5  # a whole mesh loses its connections at once


class Pauses:
    """The first is half a second, each further one twice as long up to ten; and up to half of it more."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._next = _FIRST_S

    def reset(self) -> None:
        """It has answered."""
        self._next = _FIRST_S

    async def wait(self) -> None:
        """One pause."""
        pause, self._next = self._next, min(self._next * 2, LONGEST_S)
        await asyncio.sleep(self._clock.jitter(pause, _JITTER))
