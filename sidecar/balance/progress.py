"""Whether an engine's work moves: the liveness that matters, for engines answer their checks while they hang.

Progress is any token, any answer that has begun or ended, and any step of the engine's own counters. While
something runs and nothing of that was seen for longer than

    max(least, 10 x p99 of the time between tokens, 4 x seconds of prompts it had to compute)

the engine hangs. Prompts count that were there at the last progress or came within a second of it, and the
time between tokens as it was then: neither what an engine is given while it stands still is an excuse, nor
that it does. Before its first token ever it may have to compile, and has `first_use_s`. Where nothing can be
seen of what runs (answers that come whole, from an engine that tells no counters) nothing is said.

A hung engine is well again with the first progress. Lest it stay idle for ever, it is given one request to
try now and then: after `least`, twice as long each time, up to a minute.
"""

from __future__ import annotations

from typing import Final

_GAPS: Final = 10.0
_TAIL: Final = 3.0  # p99 of the time between tokens against its mean: batches step together
_PROMPTS: Final = 4.0  # long prompts take longer for each token than short ones
_SOON_S: Final = 1.0
_LONGEST_TRIAL_S: Final = 60.0


class Progress:
    """`tick` several times a second. Times in seconds."""

    __slots__ = (
        "_gap", "_has_moved", "_last", "_owed", "_pause", "_trial_at", "first_use_s", "hung", "least_s"
    )  # fmt: skip

    def __init__(self, least_s: float, first_use_s: float, now: float) -> None:
        self.least_s = least_s
        self.first_use_s = first_use_s
        self.hung = False
        self._last = now
        self._owed = 0.0
        self._gap = 0.0
        self._has_moved = False
        self._trial_at = 0.0
        self._pause = least_s

    def tick(self, now: float, *, busy: bool, moved: bool, gap_s: float, prompts_s: float) -> bool:
        """True when the verdict changed.

        `busy`: something runs of which progress could be seen. `moved`: some was seen since the last tick.
        `gap_s`: mean time between tokens. `prompts_s`: of those it was given and has not computed.
        """
        before = self.hung
        if moved:
            self._has_moved = True
            self.hung = False
            self._last = now
            self._owed = prompts_s
            self._gap = gap_s
        elif not busy:
            self._last = now
            self._owed = 0.0
        elif now - self._last <= _SOON_S:
            self._owed = max(self._owed, prompts_s)
        if not self.hung and busy and now - self._last > self.allowed_s:
            self.hung = True
            self._pause = self.least_s
            self._trial_at = now + self._pause
        return self.hung != before

    @property
    def allowed_s(self) -> float:
        """How long nothing may be seen."""
        least = self.least_s if self._has_moved else max(self.first_use_s, self.least_s)
        return max(least, _GAPS * _TAIL * self._gap, _PROMPTS * self._owed)

    def may_try(self, now: float) -> bool:
        """Whether a hung engine is to be given one request now: then it is, and not again for a while."""
        if not self.hung or now < self._trial_at:
            return False
        self._pause = min(2 * self._pause, _LONGEST_TRIAL_S)
        self._trial_at = now + self._pause
        return True

    def is_certain(self, now: float) -> bool:
        """It hangs, and has for twice as long as it would have to."""
        return self.hung and now - self._last > 2 * self.allowed_s

    def begin_anew(self, now: float) -> None:
        """The engine was started again: it is another one."""
        self.hung = self._has_moved = False
        self._last = now
        self._owed = self._gap = 0.0
