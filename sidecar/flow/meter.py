"""What the engine does, as far as it can be told from the tokens that pass.

Prompt rate: of requests that got their first token, sum of (backlog at dispatch) / sum of (time to first
token less one step), both forgetting 2 % with each. Work rate: (prompt tokens computed + DECODE x tokens
decoded) a second, over windows in which somebody waited, an exponential mean of 0.2; None before the first.
Of answers that are not streamed only the end is seen: how long they took says how fast tokens come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.flow.controller import Window
from sidecar.flow.ticket import DECODE

if TYPE_CHECKING:
    from collections.abc import Collection

    from sidecar.flow.ticket import Ticket

_FORGET: Final = 0.98
_SMOOTH: Final = 0.2
_SLOWLY: Final = 0.05
_LONG: Final = 16  # tokens of an answer that says how fast they come
_PRIOR_PROMPT_RATE: Final = 8000.0  # tokens/s, until one is measured
_LEAST_RATE: Final = 50.0
_CAUTIOUS_PROMPT_RATE: Final = 400.0  # while none is measured: of an engine without a GPU


class Meter:
    """Counts between `close`s. `prompt_rate` and `work_rate` in tokens a second."""

    __slots__ = ("_began", "_believed", "_computed", "_decoded", "_late", "_late_n", "_prompt", "_running",
                 "_ticks", "_time", "_unbound", "itl_s", "prompt_rate", "work_rate")  # fmt: skip

    def __init__(self, now: float) -> None:
        self._began = now
        self._believed = 0.0
        self._prompt = self._time = 0.0
        self._computed = self._decoded = 0.0
        self._late = 0.0
        self._late_n = 0
        self._running = 0
        self._ticks = 0
        self._unbound = False
        self.itl_s = 0.03  # mean
        self.prompt_rate = _PRIOR_PROMPT_RATE
        self.work_rate: float | None = None

    def on_first_token(self, ticket: Ticket, now: float) -> None:
        """Its prompt has been computed."""
        dispatched, ahead, step = ticket.dispatched, ticket.ahead, self.itl_s
        self._computed += ticket.fresh
        took = now - dispatched
        if dispatched >= self._believed:
            self._late += took - ahead / self.prompt_rate - 2 * step
            self._late_n += 1
        self._prompt = prompt = self._prompt * _FORGET + ahead
        self._time = spent = self._time * _FORGET + max(took - step, 1e-3)
        if prompt > 1000:
            self.prompt_rate = max(prompt / spent, _LEAST_RATE)

    @property
    def least_prompt_rate(self) -> float:
        """For who must not take an engine for faster than it is: not what is believed, but what is known."""
        known = self.prompt_rate != _PRIOR_PROMPT_RATE
        return self.prompt_rate if known else _CAUTIOUS_PROMPT_RATE

    def on_tokens(self, count: float) -> None:
        """Tokens were decoded."""
        self._decoded += count

    def on_whole(self, ticket: Ticket, seconds: float) -> None:
        """An answer came at once, so long after its dispatch: nothing else is seen of such."""
        if ticket.tokens >= _LONG:
            gap = (seconds - ticket.ahead / self.prompt_rate) / ticket.tokens
            if gap > 0:
                self.itl_s += (gap - self.itl_s) * _SLOWLY

    def on_tick(self, running: int, bound: bool) -> None:
        """Look at what runs and whether anybody waits; several times in a window."""
        self._running += running
        self._ticks += 1
        self._unbound |= not bound

    def believe_from(self, now: float) -> None:
        """The limit was lowered: only what is dispatched from now on tells whether that was enough."""
        self._believed = now

    def close(
        self, now: float, running: Collection[Ticket], objective_ms: float, room: float = 0.0
    ) -> Window:
        """End the window: what was seen in it. `room`: KV tokens set aside at its end."""
        seconds = max(now - self._began, 1e-3)
        work = (self._computed + DECODE * self._decoded) / seconds
        bound = not self._unbound and self._ticks > 0
        if bound and work > 0:
            old = self.work_rate
            self.work_rate = work if old is None else old + (work - old) * _SMOOTH
        window = Window(
            work=work,
            running=self._running / max(self._ticks, 1),
            itl_ms=self._gaps(running, seconds),
            objective_ms=objective_ms,
            bound=bound,
            room=room,
            delay_ms=1000 * self._late / self._late_n if self._late_n else None,
        )
        self._began = now
        self._computed = self._decoded = self._late = 0.0
        self._late_n = self._running = self._ticks = 0
        self._unbound = False
        return window

    def _gaps(self, running: Collection[Ticket], seconds: float) -> float | None:
        """The 90th percentile over streams of their mean milliseconds between tokens."""
        gaps, before = [], self._began
        for ticket in running:
            tells = ticket.steady and ticket.tokens > 0 and not ticket.unread
            if tells and 0 < ticket.first <= before:
                gaps.append(seconds / max(ticket.tokens - ticket.marked, 1))
            ticket.marked = ticket.tokens
        if not gaps:
            return None
        gaps.sort()
        mean = sum(gaps) / len(gaps)
        self.itl_s += (mean - self.itl_s) * _SMOOTH
        return 1000 * gaps[int(0.9 * (len(gaps) - 1))]
