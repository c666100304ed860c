"""Load reports: those of engines, and our own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.balance.load import EngineLoad, Occupancy
from sidecar.balance.orca import LoadReport, json_line, read_report, text_line

HALF = Occupancy(waiting=3, running=32, utilization=0.5, kv_used=0.25)
# What Envoy's parser knows beside named metrics; anything else makes it discard the whole report.
KNOWN = {"application_utilization", "cpu_utilization", "mem_utilization", "eps", "rps_fractional"}


@pytest.mark.parametrize(
    ("value", "load"),
    [
        # vLLM
        (
            b"TEXT named_metrics.kv_cache_usage_perc=0.4, named_metrics.num_requests_waiting=2.0",
            EngineLoad(1.0, waiting=2, kv_used=0.4),
        ),
        (
            b'JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 2.0}}',
            EngineLoad(1.0, waiting=2, kv_used=0.4),
        ),
        # Triton
        (
            b"TEXT named_metrics.kv_cache_utilization=0.5,named_metrics.max_token_capacity=4096",
            EngineLoad(1.0, kv_used=0.5, kv_tokens=4096),
        ),
        (b"TEXT cpu_utilization:0.7,named_metrics.num_requests_running:3", EngineLoad(1.0, running=3)),
        (b'JSON {"eps": 0.7, "named_metrics": {"num_requests_running": 3}}', EngineLoad(1.0, running=3)),
        (
            b"TEXT x, =,named_metrics.num_requests_waiting=nan,named_metrics.num_requests_running=1",
            EngineLoad(1.0, running=1),
        ),
        (b"TEXT named_metrics.num_requests_waiting=-1", None),
        (b"TEXT named_metrics.num_requests_waiting=inf", None),
        (b"TEXT named_metrics.kv_cache_usage_perc=1.5", EngineLoad(1.0, kv_used=1.0)),
        (b"TEXT num_requests_waiting=1", None),
        (b"TEXT", None),
        (b"JSON [1]", None),
        (b'JSON {"named_metrics": {"num_requests_waiting": "2"}}', None),
        (b"JSON {", None),
        (b"BIN CQAAAAAAAOA/", None),
        (b"named_metrics.num_requests_waiting=1", None),
        (b"TEXT named_metrics.num_requests_waiting=1," + b" " * 20_000, None),
    ],
)
def test_an_engines_report(value: bytes, load: EngineLoad | None) -> None:
    assert read_report(value, 1.0) == load


@given(st.binary())
def test_no_report_is_too_strange(noise: bytes) -> None:
    for start in (b"", b"TEXT ", b"JSON ", b"TEXT named_metrics.a=", b'JSON {"named_metrics": '):
        read_report(start + noise, 1.0)


IDLE, SWAMPED = Occupancy(0, 0, 0.0), Occupancy(10**6, 1, 1e-7)


@pytest.mark.parametrize("of", [HALF, HALF._replace(kv_used=None), IDLE, SWAMPED])
def test_ours_as_text_is_what_envoy_takes(of: Occupancy) -> None:
    name, _, value = text_line(of, 3.14159, 0.0).partition(b": ")
    assert name == b"endpoint-load-metrics"
    assert value.endswith(b"\r\n")
    entries = [entry.split("=") for entry in value.decode().strip().removeprefix("TEXT ").split(",")]
    found = {name: float(number) for name, number in entries}
    assert len(found) == len(entries), "no name twice"
    assert {name for name in found if not name.startswith("named_metrics.")} <= KNOWN
    assert found["application_utilization"] == pytest.approx(of.utilization)
    assert found["rps_fractional"] == pytest.approx(3.142)
    assert found["eps"] == 0
    assert found["named_metrics.num_requests_waiting"] == of.waiting
    assert found["named_metrics.num_requests_running"] == of.running
    assert found.get("named_metrics.kv_cache_usage_perc") == of.kv_used
    # And an engine's consumer reads it as it reads vLLM's.
    load = EngineLoad(1.0, waiting=of.waiting, running=of.running, kv_used=of.kv_used)
    assert read_report(value.strip(), 1.0) == load


def test_ours_as_json() -> None:
    value = json_line(HALF, 3.0, 1.5).removeprefix(b"endpoint-load-metrics: JSON ")
    assert json.loads(value) == {
        "application_utilization": 0.5,
        "rps_fractional": 3.0,
        "eps": 1.5,
        "named_metrics": {"num_requests_waiting": 3, "num_requests_running": 32, "kv_cache_usage_perc": 0.25},
    }


class Rig:
    """A report, and how often it asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.report = LoadReport(self.occupancy, 0.0)
        self.report.turn(on=True)

    def occupancy(self) -> Occupancy:
        self.asked += 1
        return Occupancy(self.asked, 0, 0.5)

    def rates(self, now: float) -> tuple[float, float]:
        line = self.report.line(now, {b"endpoint-load-metrics-format": b"json"})
        report = json.loads(line.partition(b"JSON ")[2])
        return report["rps_fractional"], report["eps"]


def test_it_is_made_anew_ten_times_a_second() -> None:
    rig = Rig()
    first = rig.report.line(0.0, {})
    assert rig.report.line(0.0999, {}) is first
    assert b"waiting=2" in rig.report.line(0.1, {})
    assert rig.asked == 2


def test_the_form_is_the_askers() -> None:
    rig = Rig()
    for asked, form in ((b"TEXT", b"TEXT"), (b"JSON", b"JSON"), (b"json", b"JSON"), (b"BIN", b"TEXT")):
        line = rig.report.line(0.0, {b"endpoint-load-metrics-format": asked})
        assert line.startswith(b"endpoint-load-metrics: %b " % form)


def test_switched_off_there_is_none() -> None:
    rig = Rig()
    rig.report.turn(on=False)
    assert rig.report.line(5.0, {b"endpoint-load-metrics-format": b"JSON"}) == b""
    assert rig.asked == 0
    rig.report.turn(on=True)
    assert rig.report.line(5.0, {}) != b""


@pytest.mark.parametrize("every_s", [0.05, 0.5, 2.0])
def test_rates_are_those_of_the_last_seconds(every_s: float) -> None:
    rig = Rig()
    now = 0.0
    for _ in range(round(60 / every_s)):
        now += every_s
        rig.report.answered += 2
        rig.report.failed += 1
        rates = rig.rates(now)
    assert rates == (pytest.approx(2 / every_s, rel=0.05), pytest.approx(1 / every_s, rel=0.05))
    assert rig.rates(now + 30)[0] < 0.05 / every_s
