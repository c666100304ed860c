"""Writes log lines to a file descriptor from a thread of its own.

Whoever reads them may be slow, stuck or gone: the event loop never waits for it, and nothing of the
data plane ends because of it. While one batch is being written one more waits here; what comes after
it stays with its owner, whose buffer is bounded.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger("headgate.lines")


class LineWriter:
    """Writes to `fd`. Lines that cannot be written are lost, and that is said once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._batches: queue.Queue[bytes | None] = queue.Queue(maxsize=2)  # a batch, and the end
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="access-log", daemon=True)
        self._thread.start()

    def offer(self, take: Callable[[], bytes]) -> None:
        """Call `take` for the next batch, unless one is waiting still."""
        if self._batches.empty():
            lines = take()
            if lines:
                self._batches.put_nowait(lines)

    def close(self, within_s: float) -> None:
        """Write what was offered, if the reader lets us within the time; the last call."""
        self._batches.put_nowait(None)
        self._thread.join(within_s)

    def _run(self) -> None:
        while (lines := self._batches.get()) is not None:
            try:
                while lines:
                    lines = lines[os.write(self._fd, lines) :]
            except OSError as error:
                if not self._complained:
                    log.error("the access log cannot be written, lines are lost: %s", error.strerror)
                self._complained = True
