"""What is written down about an exchange, and what never is."""

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.load import Occupancy
from sidecar.balance.orca import LoadReport
from sidecar.errors import CLIENT_GONE, MALFORMED, QUEUE_FULL
from sidecar.exchange import Exchange, Reply
from sidecar.flow.ticket import Ticket
from sidecar.stages.account import Account
from sidecar.telemetry.access_log import AccessLog
from sidecar.telemetry.metrics import Metrics
from sidecar.telemetry.receipts import Receipts
from tests.harness.clock import FakeClock
from tests.unit.sidecar.stages.asker import Asker


class Rig(Asker):
    def __init__(self) -> None:
        clock = FakeClock()
        self.metrics = Metrics("test", 10)
        self.log = AccessLog("all", 1.0, 1 << 20)
        self.receipts = Receipts(10)
        self.report = LoadReport(lambda: Occupancy(0, 0, 0.0), clock.now())
        account = Account(clock, self.metrics, self.log, self.receipts, self.report)
        super().__init__(account, clock=clock)

    def begin(self, *fields: str) -> Exchange:
        """A request that later stages have read."""
        x = self.ask(*fields, target="/v1/chat/completions?key=secret", body=b"spoken")
        x.tenant, x.cls, x.model, x.stream = "acme", "premium", "llama", True
        x.path, x.client_ip = "/v1/chat/completions", "192.0.2.7"
        return x

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.take().splitlines()]

    def requests(self) -> dict[str, float]:
        """Finished requests by status and reason."""
        return {
            f"{sample.labels['status']} {sample.labels['reason']}".strip(): sample.value
            for family in parse(self.metrics.render("")[0].decode())
            for sample in family.samples
            if sample.name == "headgate_requests_total"
        }


def answered_by_the_engine(rig: Rig, *fields: str) -> Exchange:
    x = rig.begin(*fields)
    x.endpoint = Endpoint("127.0.0.1", 8000)
    x.parked, x.waited = x.arrived, 0.25
    x.dispatched = x.arrived + 0.5
    x.responded = x.arrived + 2.0
    x.status, x.bytes_out, x.attempt, x.repeat, x.tokens = 200, 1234, 2, 3, 17
    x.trail = "127.0.0.1:9000 connect_failed"
    x.ticket = Ticket(x, 0, "acme", 1.0, 20.5, 20.5, 100.0, x.arrived, x.arrived + 1)
    x.ticket.promised, x.ticket.position, x.ticket.predicted = True, 5, 1.25
    rig.clock.advance(3.0)
    x.pipeline.complete(x)
    return x


def test_an_answer_of_the_engine() -> None:
    rig = Rig()
    arrived = rig.clock.wall()
    answered_by_the_engine(rig, "x-request-id: abc")
    assert rig.lines() == [
        {
            "arrived": int(arrived * 1000),
            "request_id": "abc",
            "client": "192.0.2.7",
            "method": "POST",
            "path": "/v1/chat/completions",
            "tenant": "acme",
            "class": "premium",
            "model": "llama",
            "stream": True,
            "status": 200,
            "reason": "",
            "endpoint": "127.0.0.1:8000",
            "attempts": 2,
            "tried": "127.0.0.1:9000 connect_failed",
            "repeat": 3,
            "invited": True,
            "duration_ms": 3000.0,
            "position": 5,
            "predicted_ms": 1250.0,
            "queue_ms": 250.0,
            "upstream_ms": 1500.0,
            "prompt_tokens": 20,
            "answer_tokens": 17,
            "bytes_in": 6,
            "bytes_out": 1234,
        }
    ]
    assert rig.requests() == {"200": 1.0}
    assert [receipt.request_id for receipt in rig.receipts.last(10)] == ["abc"]


def test_the_histograms() -> None:
    rig = Rig()
    answered_by_the_engine(rig)
    page = rig.metrics.render("")[0].decode()
    for line in (
        'headgate_request_duration_seconds_sum{class="premium",model="llama"} 3.0',
        'headgate_time_to_first_byte_seconds_sum{class="premium",model="llama"} 2.0',
        'headgate_queue_seconds_sum{class="premium",model="llama"} 0.25',
        'headgate_response_bytes_total{class="premium",model="llama",tenant="acme"} 1234.0',
        'headgate_tokens_total{class="premium",kind="prompt",model="llama",tenant="acme"} 20.5',
        'headgate_tokens_total{class="premium",kind="answer",model="llama",tenant="acme"} 17.0',
    ):
        assert line in page


def test_a_refusal_reached_no_engine_and_did_not_queue() -> None:
    rig = Rig()
    x = rig.begin()
    x.status = QUEUE_FULL.status
    x.pipeline.refuse(x, Reply(QUEUE_FULL))
    (line,) = rig.lines()
    assert [line[key] for key in ("status", "reason", "endpoint", "queue_ms", "upstream_ms")] == [
        503, "queue_full", "", 0.0, 0.0,
    ]  # fmt: skip
    assert rig.requests() == {"503 queue_full": 1.0}
    page = rig.metrics.render("")[0].decode()
    assert 'headgate_queue_seconds_count{class="premium",model="llama"} 0' in page
    assert 'headgate_time_to_first_byte_seconds_count{class="premium",model="llama"} 0' in page


def test_a_caller_that_left() -> None:
    rig = Rig()
    x = rig.begin()
    x.status, x.reason = CLIENT_GONE.status, CLIENT_GONE.reason
    x.pipeline.complete(x)
    assert rig.requests() == {"499 client_gone": 1.0}


def test_bytes_that_are_no_request_are_written_down_too() -> None:
    rig = Rig()
    rig.ask(method="", target="", body=b"", refused=Reply(MALFORMED))
    assert [line["reason"] for line in rig.lines()] == ["malformed"]


def test_of_a_long_path_the_beginning_is_written_down() -> None:
    rig = Rig()
    for length in (256, 257, 16_000):
        x = rig.begin()
        x.path = "/" * (length - 1) + "é"
        x.pipeline.complete(x)
    assert [line["path"] for line in rig.lines()] == ["/" * 255 + "é", "/" * 256, "/" * 256]


def test_neither_query_nor_key_nor_prompt_is_written_down() -> None:
    rig = Rig()
    answered_by_the_engine(rig, "authorization: Bearer secret", "x-api-key: secret", "cookie: secret")
    x = rig.begin("authorization: Bearer secret")
    x.pipeline.refuse(x, Reply(QUEUE_FULL))
    written = rig.log.take() + rig.metrics.render("")[0] + repr(rig.receipts.last(10)).encode()
    assert b"secret" not in written
    assert b"spoken" not in written


@pytest.mark.parametrize("given", ["a", "Az-09_.:/+=|", "x" * 128, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"])
def test_a_request_id_is_kept(given: str) -> None:
    assert Rig().ask(f"x-request-id: {given}").request_id == given.encode()


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a,b", "a\tb", 'a"b', "ü", "-", "a;b", "{a}"])
def test_another_is_replaced(given: str) -> None:
    assert Rig().ask(f"x-request-id: {given}").request_id == b"%032x" % 1


def test_everybody_has_an_id_of_its_own() -> None:
    rig = Rig()
    assert [rig.ask().request_id for _ in range(2)] == [b"%032x" % 1, b"%032x" % 2]


@pytest.mark.parametrize(
    ("status", "reason", "counted"),
    [
        (200, "", (1, 0)),
        (400, "", (1, 0)),
        (499, "client_gone", (1, 0)),
        (500, "", (1, 1)),
        (502, "upstream_reset", (1, 1)),
        (200, "stalled", (1, 1)),
    ],
)
def test_what_the_engine_did_counts_in_the_load_report(
    status: int, reason: str, counted: tuple[int, int]
) -> None:
    rig = Rig()
    x = rig.begin()
    x.is_work, x.dispatched, x.status, x.reason = True, 5.0, status, reason
    x.pipeline.complete(x)
    assert (rig.report.answered, rig.report.failed) == counted


@pytest.mark.parametrize(("is_work", "dispatched"), [(True, 0.0), (False, 5.0)])
def test_neither_a_refusal_nor_what_is_no_work_does(is_work: bool, dispatched: float) -> None:
    rig = Rig()
    x = rig.begin()
    x.is_work, x.dispatched, x.status = is_work, dispatched, 503
    x.pipeline.complete(x)
    assert (rig.report.answered, rig.report.failed) == (0, 0)
