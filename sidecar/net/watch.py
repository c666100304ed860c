"""Notices that a file has changed.

Polled, once a second: a ConfigMap is updated by swapping the symlink `..data` beside the file, which
inotify on the file does not see. `stat` follows the links, so a swap is another inode; only then is
the file read, and only other content than before is a change. The content handed out was read once
and whole, so what is decoded is what was compared.
"""

import hashlib
import logging
import os
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 64 * 2**20  # of a file; more is no configuration

log = logging.getLogger("headgate.watch")


class FileWatch:
    """Compares `path` with what it held when the watch began, or with `known`, its content then."""

    def __init__(self, path: Path, known: bytes | None = None) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._complained = False
        self._digest = _digest(known) if known is not None else b""
        if known is None:
            self.changed()

    def changed(self) -> bytes | None:
        """The new content, once for each change. None too while the file is missing or unreadable."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp == self._stamp:
                return None
            if found.st_size > MAX_BYTES:
                raise OSError(f"larger than {MAX_BYTES} bytes")
            content = self._path.read_bytes()
        except OSError as error:
            if not self._complained:
                log.warning("cannot read %s: %s", self._path, error.strerror or error)
            self._complained = True
            return None
        self._complained = False
        self._stamp = stamp
        digest = _digest(content)
        if digest == self._digest:
            return None
        self._digest = digest
        return content


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()
