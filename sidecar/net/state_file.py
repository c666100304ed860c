"""Writes the state file so that it is whole at any moment: beside it first, then in its place."""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

MAX_BYTES: Final = 16 * 2**20

log = logging.getLogger("headgate.state")


class StateFile:
    """Holds bytes over a restart. A file that cannot be read or written is warned of once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._complained = False

    def read(self) -> bytes | None:
        """Its content; None when there is none yet, or it cannot be read."""
        try:
            if self._path.stat().st_size > MAX_BYTES:
                raise OSError(f"larger than {MAX_BYTES} bytes")
            return self._path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain("read", error)
            return None

    def write(self, content: bytes) -> None:
        """Replace its content. Blocks for a disk: not for the event loop."""
        beside = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            beside.write_bytes(content)
            os.replace(beside, self._path)
        except OSError as error:
            self._complain("write", error)
            with contextlib.suppress(OSError):
                beside.unlink()
        else:
            self._complained = False

    def _complain(self, what: str, error: OSError) -> None:
        if not self._complained:
            log.warning("cannot %s %s: %s", what, self._path, error.strerror or error)
        self._complained = True
