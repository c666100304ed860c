"""Who may run, and who waits. Pure part: `flow.gate`.

Work takes a slot for as long as it is in flight, across attempts. When none is free it waits in
order of arrival, until its turn or the queue time-out. Its own deadline is Identify's to watch.
Everything but work passes: a list of models must not wait behind a generation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.errors import QUEUE_FULL, QUEUE_TIMEOUT
from sidecar.exchange import PARKED, WAITING, Exchange, Reply, Verdict
from sidecar.flow.gate import ENTERED, FULL, Gate
from sidecar.pipeline import Stage

if TYPE_CHECKING:
    from sidecar.clock import Alarms, Clock
    from sidecar.errors import Refusal
    from sidecar.settings import Admission


class Admit(Stage):
    """Holds the gate. The gate outlives a reload, so nobody loses a slot or a place to it."""

    def __init__(self, settings: Admission, gate: Gate[Exchange], clock: Clock, alarms: Alarms) -> None:
        self._off = settings.mode == "off"
        self._timeout = settings.queue_timeout_s
        self._gate = gate
        self._clock = clock
        self._alarms = alarms

    def on_request(self, x: Exchange) -> Verdict:
        if self._off or not x.is_work:
            return None
        outcome = self._gate.arrive(x)
        if outcome == ENTERED:
            return None
        if outcome == FULL:
            return self._refusal(QUEUE_FULL)
        x.parked = self._clock.now()
        x.timer = self._alarms.after(self._timeout, self._give_up, x)
        return PARKED

    def on_complete(self, x: Exchange) -> None:
        if x.timer is not None:
            self._stop_waiting(x)
        self._gate.leave(x, self._clock.now())
        self.let_in()

    def let_in(self) -> None:
        """Resume those for whom there is room: after somebody left, or a reload made room."""
        while (woken := self._gate.next_in()) is not None:
            # One that was refused meanwhile is on its way out and gives the slot back itself.
            if woken.state == WAITING:
                self._stop_waiting(woken)
                woken.pipeline.resume(woken)

    def _give_up(self, x: Exchange) -> None:
        if x.state == WAITING:
            x.pipeline.resume(x, self._refusal(QUEUE_TIMEOUT))

    def _stop_waiting(self, x: Exchange) -> None:
        x.waited += self._clock.now() - x.parked
        if x.timer is not None:
            x.timer.cancel()
            x.timer = None

    def _refusal(self, refusal: Refusal) -> Reply:
        return Reply(refusal, retry_after_s=self._clock.jitter(self._gate.wait_s(), 0.2))
