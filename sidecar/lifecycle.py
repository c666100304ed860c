"""What this pod is doing, for everyone who has to know: probes, balancers, callers."""

from __future__ import annotations

from typing import Final

_UNREADY_AFTER_S: Final = 1.0
_LONGEST_MEMORY_S: Final = 5.0


class Lifecycle:
    """Flags that the data plane sets and others read, from any thread.

    The event loop is lagging once it was late for a second in sum: each late tick adds by how much
    it was late, each punctual one takes the tick's length off again.
    """

    __slots__ = ("_late", "beat", "crowded", "draining", "ends", "lag_s", "lagging", "limit_s", "serving")

    def __init__(self) -> None:
        self.serving = False  # the listener is open
        self.draining = False  # on the way out: nothing new is begun here
        self.ends = 0.0  # by when what runs is to have ended, once it is draining
        self.crowded = False  # descriptors are short: nobody is accepted, answers make room
        self.limit_s = 0.5  # a tick later than this is late
        self.lag_s = 0.0  # how late the last tick was
        self.lagging = False  # the event loop is too late to be of use: new work is refused
        self.beat = 0.0  # when the event loop last turned
        self._late = 0.0

    @property
    def tolerance_s(self) -> float:
        """How long the event loop may be silent before it is lagging, whatever it will say."""
        return self.limit_s + _UNREADY_AFTER_S

    def left_s(self, now: float) -> float:
        """How long what runs may go on."""
        return max(self.ends - now, 0.0)

    def tick(self, now: float, due: float, every: float) -> None:
        """The loop turned at `now`; it was due at `due`, and is `every` so many seconds."""
        self.beat = now
        self.lag_s = lag = max(now - due, 0.0)
        if lag > self.limit_s:
            self._late = min(self._late + lag, _LONGEST_MEMORY_S)
        elif self._late:
            self._late = max(self._late - every, 0.0)
        self.lagging = self._late >= _UNREADY_AFTER_S
