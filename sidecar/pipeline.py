"""Moves an exchange through the stages.

Rule 1: a stage is left exactly once for each time it was entered, in reverse order. `_rewind` is
the only code that leaves stages. Completion is a rewind to the start, a retry is a rewind to the
stage that picks the endpoint, a rewritten request is a rewind to any other.

Rule 2: nothing here runs inside itself. Leaving a stage may free capacity and wake a parked
exchange. The woken one waits in `_ready` until the exchange that woke it has left every stage it
is going to leave. Pipelines that share a `Ready` list share this rule: after a reload the old and
the new one wake each other's exchanges.

Rule 3: a stage that raises has a bug, and so has `forward`. Its exchange is answered with 500 and
settled like any other, so a bug costs one request and no capacity.

Rule 4: an exchange is dispatched only when nothing about it is pending. A stage that asks
something of the outside calls `hold`, lets the exchange go on (into a queue, say), and calls
`release` when the answer is there. The exchange stops before the stage that picks the endpoint
for as long as anything is held.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from sidecar.errors import INTERNAL
from sidecar.exchange import DONE, FORWARDED, HELD, PARKED, RUNNING, WAITING, Exchange, Reply, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

log = logging.getLogger("headgate.pipeline")


class Stage:
    """One step of the journey. A hook that is not overridden costs nothing."""

    def on_request(self, x: Exchange) -> Verdict:
        """Let `x` go on (None), answer it (`Reply`), or keep it and resume it later (`PARKED`)."""
        return None

    def on_response(self, x: Exchange) -> None:
        """The response head is here: `x.status` is known, nothing was sent to the client."""

    def on_data(self, x: Exchange, data: bytes) -> None:
        """Response bytes are about to pass."""

    def on_complete(self, x: Exchange) -> None:
        """Give back what `on_request` took. Called once for each time the stage was entered."""


class Ready:
    """Exchanges that were woken and wait for their turn, and whether a turn is being taken."""

    __slots__ = ("busy", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[Exchange] = deque()
        self.busy = False


class Pipeline:
    """One configuration's stages, and the two ways out of them: `forward` and `answer`.

    `retry_at` is the index of the stage that picks the endpoint. `recover` may find another place for a
    forwarded exchange whose attempt failed: True, and it will be sent there by `retry`.
    """

    __slots__ = (
        "_answer",
        "_data",
        "_enter",
        "_forward",
        "_leave",
        "_ready",
        "_recover",
        "_response",
        "_retry_at",
        "sees_data",
    )

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        retry_at: int,
        forward: Callable[[Exchange], None],
        answer: Callable[[Exchange, Reply], None],
        recover: Callable[[Exchange], bool] | None = None,
        ready: Ready | None = None,
    ) -> None:
        self._enter = tuple(stage.on_request for stage in stages)
        self._leave = tuple(_overridden(stage, "on_complete") for stage in stages)
        self._response = tuple(s.on_response for s in stages if _overridden(s, "on_response"))
        self._data = tuple(s.on_data for s in stages if _overridden(s, "on_data"))
        self.sees_data = bool(self._data)  # whether `data` has anybody to show anything to
        self._retry_at = retry_at
        self._forward = forward
        self._answer = answer
        self._recover = recover
        self._ready = ready or Ready()

    def start(self, x: Exchange) -> None:
        """Run a new exchange, then every exchange that running it woke.

        One that is refused from the start (`x.refusal`: bytes that are no request) enters the first
        stage alone, the one that writes down what became of it.
        """
        self._ready.waiting.append(x)
        self._drain()

    def resume(self, x: Exchange, verdict: Reply | None = None) -> None:
        """Take the verdict that the stage which parked `x` still owed, and run on."""
        assert x.state == WAITING, x.state
        x.state = RUNNING
        x.refusal = verdict
        self.start(x)

    def hold(self, x: Exchange) -> None:
        """Keep `x` from being dispatched until `release` is called as often."""
        x.pending += 1

    def release(self, x: Exchange, verdict: Reply | None = None) -> None:
        """Bring one pending answer of `x`; a `Reply` refuses it wherever it is."""
        x.pending -= 1
        if x.state == DONE:
            return
        if verdict is not None:
            x.refusal = verdict
        if x.state == HELD or (x.state == WAITING and verdict is not None):
            if x.pending and verdict is None:
                return
            x.state = RUNNING
            self.start(x)

    def retry(self, x: Exchange, at: int | None = None) -> None:
        """Send a forwarded exchange through the stages again, from `at` (default: another endpoint).

        None of its answer may have been sent. What is below `at` is left first, so a stage that
        rewrote the body is charged for the new one.
        """
        assert x.state == FORWARDED, x.state
        self._rewind(x, self._retry_at if at is None else at)
        x.attempt += 1
        x.state = RUNNING
        self.start(x)

    def refuse(self, x: Exchange, reply: Reply) -> None:
        """Answer and settle an exchange that has not been answered. Nothing happens when it is done."""
        if x.state == RUNNING and not x.entered:
            x.refusal = reply  # its turn has not come: the first stage must see it
        elif x.state != DONE:
            self._reply(x, reply)

    def fail(self, x: Exchange, reply: Reply) -> None:
        """An attempt of `x` came to nothing: `reply` is the answer, unless there is another place for it."""
        if not self.recovers(x, reply.refusal.reason):
            self.refuse(x, reply)

    def recovers(self, x: Exchange, failure: str, status: int = 0) -> bool:
        """Whether there is another place for `x` after a failure, or an answer of `status`: it goes there."""
        if x.state != FORWARDED or self._recover is None:
            return False
        x.failure, x.failed_with = failure, status
        try:
            return self._recover(x)
        except Exception:
            log.exception("finding another place failed")
            return False

    def complete(self, x: Exchange) -> None:
        """Settle an exchange that was answered, failed or abandoned. Safe to call twice."""
        x.state = DONE
        self._rewind(x, 0)
        self._drain()

    def response(self, x: Exchange) -> bool:
        """Show the response head to the stages; False when one failed and `x` was refused for it."""
        return not self._response or self._show(x, self._response)

    def data(self, x: Exchange, data: bytes) -> bool:
        """Show response bytes to the stages; False when one failed and `x` was settled for it."""
        return not self._data or self._show(x, self._data, data)

    def _show(self, x: Exchange, hooks: tuple[Callable[..., None], ...], *args: bytes) -> bool:
        try:
            for hook in hooks:
                hook(x, *args)
        except Exception:
            log.exception("a stage failed on the response")
            self.refuse(x, Reply(INTERNAL))
            return False
        return True

    def _drain(self) -> None:
        ready = self._ready
        if ready.busy:
            return
        ready.busy = True
        waiting = ready.waiting
        try:
            while waiting:
                x = waiting.popleft()
                x.pipeline._advance(x)
        finally:
            ready.busy = False

    def _advance(self, x: Exchange) -> None:
        enter = self._enter
        try:
            while x.state == RUNNING:
                at = x.entered
                if x.refusal is not None and at:
                    self._reply(x, x.refusal)
                    return
                if at == self._retry_at and x.pending:
                    x.state = HELD
                    return
                if at == len(enter):
                    x.state = FORWARDED
                    self._forward(x)
                    return
                x.entered = at + 1
                verdict = enter[at](x)
                if verdict is None:
                    continue
                if x.state != RUNNING:
                    return
                if verdict is not PARKED:
                    assert isinstance(verdict, Reply)
                    self._reply(x, verdict)
                    return
                if x.refusal is None:
                    x.state = WAITING
        except Exception:
            log.exception("stage %d failed", x.entered - 1)
            self.refuse(x, Reply(INTERNAL))

    def _reply(self, x: Exchange, reply: Reply) -> None:
        ready = self._ready
        was_busy, ready.busy = ready.busy, True  # what answering starts waits until `x` is settled
        x.state = DONE
        x.reason = reply.refusal.reason
        try:
            self._answer(x, reply)
        except Exception:
            log.exception("answering failed")
        ready.busy = was_busy
        self.complete(x)

    def _rewind(self, x: Exchange, to: int) -> None:
        ready = self._ready
        was_busy, ready.busy = ready.busy, True
        while x.entered > to:
            x.entered -= 1
            leave = self._leave[x.entered]
            if leave is None:
                continue
            try:
                leave(x)
            except Exception:
                log.exception("leaving stage %d failed", x.entered)
        ready.busy = was_busy


def _overridden(stage: Stage, hook: str) -> Callable[[Exchange], None] | None:
    """The stage's bound hook, or None when it is the base class's empty one."""
    method: Callable[[Exchange], None] = getattr(stage, hook)
    return None if getattr(type(stage), hook) is getattr(Stage, hook) else method
