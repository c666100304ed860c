"""A concurrency limit with a bounded FIFO queue.

    in flight < limit   enter at once
    else                wait, first in first out, at most `max_queue` at a time
    else                refused: the queue is full

A slot that becomes free goes to the head of the queue, so nobody overtakes. The wait of a newcomer
is predicted as (waiting + 1) x the mean time between two slots becoming free while someone waits
(an exponential mean over 16).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

T = TypeVar("T")

_SMOOTHING: Final = 1 / 16
_UNKNOWN_WAIT_S: Final = 1.0

ENTERED, QUEUED, FULL = range(3)


class Gate(Generic[T]):
    """Who is inside and who waits. A member is inside, waiting, or neither; never both."""

    __slots__ = ("_freed", "_inside", "_interval", "_waiting", "limit", "max_queue")

    def __init__(self, limit: int, max_queue: int) -> None:
        self.limit = limit
        self.max_queue = max_queue
        self._inside: set[T] = set()
        # Linked, so that whoever gives up is unlinked in O(1) and leaves no tombstone.
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self._freed: float | None = None
        self._interval: float | None = None

    @property
    def in_flight(self) -> int:
        return len(self._inside)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def arrive(self, member: T) -> int:
        """ENTERED, QUEUED or FULL."""
        if len(self._inside) < self.limit and not self._waiting:
            self._inside.add(member)
            return ENTERED
        if len(self._waiting) < self.max_queue:
            self._waiting[member] = None
            return QUEUED
        return FULL

    def leave(self, member: T, now: float) -> None:
        """Give up a slot, or a place in the queue, or nothing. `next_in` tells who may enter."""
        if member in self._inside:
            self._inside.remove(member)
            self._measure(now)
        else:
            self._waiting.pop(member, None)

    def next_in(self) -> T | None:
        """Let the head of the queue in, if there is room: call until None."""
        if not self._waiting or len(self._inside) >= self.limit:
            return None
        member, _ = self._waiting.popitem(last=False)
        self._inside.add(member)
        return member

    def wait_s(self) -> float:
        """The predicted wait of one who came now, in seconds."""
        interval = _UNKNOWN_WAIT_S if self._interval is None else self._interval
        return (len(self._waiting) + 1) * interval

    def _measure(self, now: float) -> None:
        freed, self._freed = self._freed, now
        if not self._waiting:
            self._freed = None  # the next gap says how busy callers are, not the engine
        elif freed is not None:
            gap = now - freed
            old = self._interval
            self._interval = gap if old is None else old + (gap - old) * _SMOOTHING
