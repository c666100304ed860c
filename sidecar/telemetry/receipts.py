"""The last N records, for /debug/decisions."""

from collections import deque
from itertools import islice

from sidecar.telemetry.record import Record


class Receipts:
    """A ring: the oldest record gives way to the newest."""

    def __init__(self, capacity: int) -> None:
        self._ring: deque[Record] = deque(maxlen=capacity)

    def resize(self, capacity: int) -> None:
        """Keep `capacity` records from now on; the newest stay."""
        if capacity != self._ring.maxlen:
            self._ring = deque(self._ring, maxlen=capacity)

    def add(self, record: Record) -> None:
        """Keep `record`."""
        self._ring.append(record)

    def last(self, n: int) -> list[Record]:
        """Up to `n` records, newest first."""
        return list(islice(reversed(self._ring), max(0, n)))
