"""Which lines are kept, and how many."""

import json

import pytest

from sidecar.telemetry.access_log import AccessLog, Mode
from sidecar.telemetry.record import Record

BIG = 1 << 20


def record(status: int = 200, reason: str = "", path: str = "/") -> Record:
    return Record(
        arrived=0,
        request_id="r",
        client="c",
        method="GET",
        path=path,
        tenant="t",
        cls="standard",
        model="m",
        stream=False,
        status=status,
        reason=reason,
        endpoint="e",
        attempts=1,
        tried="",
        repeat=0,
        invited=False,
        duration_ms=1.0,
        position=0,
        predicted_ms=0.0,
        queue_ms=0.0,
        upstream_ms=1.0,
        prompt_tokens=0,
        answer_tokens=0,
        bytes_in=0,
        bytes_out=0,
    )


@pytest.mark.parametrize(
    ("mode", "kept"),
    [("off", []), ("errors", [404, 503, 200]), ("all", [200, 404, 503, 200]), ("sampled", [404, 503, 200])],
)
def test_modes(mode: Mode, kept: list[int]) -> None:
    log = AccessLog(mode, 0.01, BIG)
    for status, reason in ((200, ""), (404, ""), (503, "queue_full"), (200, "stalled")):
        log.add(record(status, reason))
    assert [json.loads(line)["status"] for line in log.take().splitlines()] == kept


def test_a_sample_is_even_and_leaves_errors_out_of_the_count() -> None:
    log = AccessLog("sampled", 0.25, BIG)
    kept = []
    for i in range(12):
        log.add(record(path=f"/{i}"))
        log.add(record(500))
        kept += [json.loads(line)["path"] for line in log.take().splitlines()]
    assert [path for path in kept if path != "/"] == ["/3", "/7", "/11"]
    assert kept.count("/") == 12


def test_take_hands_over_each_line_once() -> None:
    log = AccessLog("all", 1.0, BIG)
    log.add(record())
    assert log.take().endswith(b"}\n")
    assert log.take() == b""


def test_the_buffer_is_bounded_and_losses_are_counted() -> None:
    log = AccessLog("all", 1.0, 1000)
    for _ in range(100):
        log.add(record())
    lines = log.take()
    assert len(lines) <= 1000
    assert log.dropped == 100 - lines.count(b"\n")
    log.add(record())
    assert log.take(), "there is room again"


def test_a_line_is_one_line() -> None:
    log = AccessLog("all", 1.0, BIG)
    log.add(record(path='/\n{"forged": "\x1b[2J'))
    assert log.take().count(b"\n") == 1


def test_the_mode_may_change_and_keeps_what_is_buffered() -> None:
    log = AccessLog("all", 1.0, BIG)
    log.add(record(path="/kept"))
    log.configure("off", 1.0)
    log.add(record(500, path="/lost"))
    lines = log.take()
    assert b"/kept" in lines
    assert b"/lost" not in lines
