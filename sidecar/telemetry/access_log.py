"""The access log: one JSON line for each exchange that the mode asks for.

Lines gather in a bounded buffer that its owner empties once in a while, so that a request costs no
system call and a stuck log costs no memory: what does not fit is counted and lost.
"""

from typing import Literal

import msgspec

from sidecar.telemetry.record import Record

Mode = Literal["off", "errors", "all", "sampled"]


class AccessLog:
    """`errors` keeps records with a reason or a status of 400 and more; `sampled` keeps these and,
    evenly, the part `sample` (0 to 1) of the others."""

    def __init__(self, mode: Mode, sample: float, max_bytes: int) -> None:
        self.configure(mode, sample)
        self._credit = 0.0
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._encode = msgspec.json.Encoder().encode
        self.dropped = 0  # lines lost since the start

    def configure(self, mode: Mode, sample: float) -> None:
        """Change what is kept from now on."""
        self._mode = mode
        self._sample = sample

    def add(self, record: Record) -> None:
        """Take note of a finished exchange."""
        if not self._wants(record):
            return
        line = self._encode(record)
        if len(self._buffer) + len(line) >= self._max_bytes:
            self.dropped += 1
            return
        self._buffer += line
        self._buffer += b"\n"

    def take(self) -> bytes:
        """The lines since the last call."""
        lines = bytes(self._buffer)
        self._buffer.clear()
        return lines

    def _wants(self, record: Record) -> bool:
        mode = self._mode
        if mode == "all":
            return True
        if mode == "off":
            return False
        if record.reason or record.status >= 400:
            return True
        if mode == "errors":
            return False
        self._credit += self._sample
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True
