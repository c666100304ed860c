"""What the terminal shows while a mesh runs.

Everything goes to stderr, since stdout is for what was asked for. A terminal sees the parts that are still
starting, with the last line each wrote; anything else gets plain lines. All output of a part goes to its log
file, which is bounded.
"""

import logging
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from rich.console import Console as Terminal

from mesh.local.plan import Part

MOST_LOG_BYTES: Final = 8 * 1024 * 1024


class Console:
    """The Audience of a Supervisor. A context: leaving it clears the line of what is starting."""

    def __init__(self, logs: Path, *, verbose: bool) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._status = self._terminal.status("")
        self._verbose = verbose
        self._logs = logs
        self._log_files: dict[str, logging.Handler] = {}
        self._starting: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._status.stop()
        for file in self._log_files.values():
            file.close()

    def say(self, text: str, style: str | None = None) -> None:
        self._terminal.print(text, style=style)

    def starting(self, part: Part) -> None:
        if not self._terminal.is_terminal:
            self.say(f"{part.name}: starting")
        self._show_starting({**self._starting, part.name: ""})

    def ready(self, part: Part, took_s: float) -> None:
        self._show_starting(_without(self._starting, part.name))
        self.say(f"{part.name}: ready after {took_s:.1f} s")

    def died(self, part: Part, how: str, again_in_s: float) -> None:
        self._show_starting(_without(self._starting, part.name))
        self.say(f"{part.name}: {how}; starting it again in {again_in_s:g} s", style="yellow")

    def line(self, part: Part, text: str) -> None:
        self._log_file(part.name).emit(logging.makeLogRecord({"msg": text}))
        if self._verbose:
            self.say(f"{part.name} | {text}", style="dim")
        if part.name in self._starting:
            self._show_starting({**self._starting, part.name: text})

    def _show_starting(self, starting: Mapping[str, str]) -> None:
        self._starting = dict(starting)
        if not self._terminal.is_terminal:
            return
        if not starting:
            self._status.stop()
            return
        room = self._terminal.width // len(starting) - len("starting")
        parts = " · ".join(f"{name} {text}"[:room].rstrip() for name, text in starting.items())
        self._status.update(f"starting {parts}")
        self._status.start()

    def _log_file(self, name: str) -> logging.Handler:
        if name not in self._log_files:
            path = self._logs / f"{name}.log"
            self._log_files[name] = RotatingFileHandler(path, maxBytes=MOST_LOG_BYTES, backupCount=1)
        return self._log_files[name]


def _without(texts: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: text for key, text in texts.items() if key != name}
