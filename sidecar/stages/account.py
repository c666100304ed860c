"""First in, last out: names the exchange, sees every outcome, writes it down. Pure parts: `telemetry`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sidecar.pipeline import Stage
from sidecar.stages.hop import HEARTBEAT
from sidecar.telemetry.record import Record

if TYPE_CHECKING:
    from sidecar.balance.orca import LoadReport
    from sidecar.clock import Clock
    from sidecar.exchange import Exchange, Verdict
    from sidecar.telemetry.access_log import AccessLog
    from sidecar.telemetry.metrics import Metrics
    from sidecar.telemetry.receipts import Receipts


_MAX_PATH: Final = 256  # characters kept of it
_SIGNS: Final = b"-_.:/+=|"  # beside letters and digits, in request ids that are believed


class Account(Stage):
    """One record and one count for each exchange, whatever became of it."""

    def __init__(
        self, clock: Clock, metrics: Metrics, log: AccessLog, receipts: Receipts, report: LoadReport
    ) -> None:
        self._clock = clock
        self._series = metrics.series
        self._log = log
        self._receipts = receipts
        self._report = report

    def on_request(self, x: Exchange) -> Verdict:
        given = x.request.noted.get(b"x-request-id")
        if given and len(given) <= 128 and given.translate(None, _SIGNS).isalnum():
            x.request_id = given
        else:
            x.request_id = self._clock.token()
        return None

    def on_complete(self, x: Exchange) -> None:
        if x.path == HEARTBEAT and x.hop:
            return  # members ask each other every second
        duration = self._clock.now() - x.arrived
        request, responded, waited, endpoint = x.request, x.responded, x.waited, x.endpoint
        ticket = x.ticket
        series = self._series(x.tenant, x.model, x.cls)
        if ticket is not None:
            position, predicted, prompt = ticket.position, ticket.predicted, ticket.prompt
            invited = ticket.promised
            if responded:
                series.prompt_tokens += prompt
                series.answer_tokens += x.tokens
        else:
            position, predicted, prompt, invited = 0, 0.0, 0.0, False
        series.done(
            x.status,
            x.reason,
            duration,
            responded - x.arrived if responded else None,
            waited if x.parked else None,
            x.bytes_out,
        )
        if x.is_work and x.dispatched:
            self._report.answered += 1
            if x.status >= 500 or (x.reason and x.status < 400):  # or its answer broke off
                self._report.failed += 1
        # By position, in the order of its fields: names would cost as much again.
        record = Record(
            int((self._clock.wall() - duration) * 1000),
            x.request_id.decode("latin-1"),
            x.client_ip,
            request.method.decode("latin-1"),
            x.path[:_MAX_PATH],
            x.tenant,
            x.cls,
            x.model,
            x.stream,
            x.status,
            x.reason,
            endpoint.name if endpoint is not None else "",
            x.attempt,
            x.trail,
            x.repeat,
            invited,
            duration * 1000,
            position,
            predicted * 1000,
            waited * 1000,
            (responded - x.dispatched) * 1000 if responded else 0.0,
            int(prompt),
            x.tokens,
            request.received,
            x.bytes_out,
        )
        self._log.add(record)
        self._receipts.add(record)
