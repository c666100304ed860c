"""Engines and callers that do not behave, and must not cost others their turn."""

import pytest

from tests.harness.engine import SSE, chunked, ok
from tests.harness.wire import post
from tests.unit.sidecar.stages.gated import Gated, emptied, reason, text, told

WIDE = "max_in_flight: 64"


def streams(pod: Gated, count: int, event: bytes, seconds: float, *, deaf: int = 0) -> None:
    """`count` streams get an event each 0.05 s; the first `deaf` of their clients do not read."""
    clients = [pod.ask(str(n), stream=True) for n in range(count)]
    for engine in pod.engines:
        engine >> SSE
    for _ in range(round(seconds / 0.25)):
        for engine in pod.engines:
            for _ in range(5):
                engine >> chunked(event, last=False)
        for client in clients[:deaf]:
            if not client.downstream.is_congested:
                client.downstream.pause_writing()
        pod.advance(0.25)


@pytest.mark.parametrize("event", [b"data: {}\n\n", b"data: {}\r\n\r\n"], ids=["lf", "crlf"])
def test_however_events_end_their_tokens_are_seen(event: bytes) -> None:
    pod = Gated(WIDE)
    streams(pod, 4, event, 5.0)
    assert pod.gate.controller.fraction >= 0.85, "50 ms between tokens is well within the objective"
    assert all(ticket.tokens >= 90 for ticket in pod.gate.running)


def test_what_shows_no_tokens_says_nothing_of_the_engine() -> None:
    pod = Gated(WIDE)
    streams(pod, 4, b'{"response": "a"}\n', 5.0)
    assert pod.gate.controller.fraction >= 0.85
    assert all(ticket.first for ticket in pod.gate.running), "it has begun, all the same"
    assert pod.gate.backlog == 0.0


def test_a_comment_is_no_first_token() -> None:
    pod = Gated(WIDE)
    pod.ask("a", stream=True)
    pod.engine >> SSE + chunked(b": ping\n\n", last=False)
    (ticket,) = pod.gate.running
    assert not ticket.first
    pod.engine >> chunked(b"data: {}\n\n", last=False)
    pod.advance(0.25)
    assert ticket.first


def test_who_does_not_read_is_no_slow_engine() -> None:
    pod = Gated(WIDE)
    streams(pod, 4, b"data: {}\n\n", 1.0, deaf=2)
    pod.advance(0.5)
    assert sum(ticket.unread for ticket in pod.gate.running) == 2


def test_lower_classes_leave_seats_free() -> None:
    pod = Gated("max_in_flight: 20")
    for n in range(30):
        pod.ask(f"low{n}", "batch", stream=True)
        pod.engine >> SSE + chunked(b"data: {}\n\n", last=False)
    assert pod.gate.in_flight < 20
    pod.ask("high", "premium", stream=True)
    assert pod.asked[-1] == "high"


def test_an_upload_is_not_text() -> None:
    pod = Gated(WIDE)
    pod.client() >> post("/v1/audio/transcriptions", b"\0" * 200_000)
    assert pod.gate.room < 3000
    pod.ask("a")
    assert pod.counts == (2, 0)


def test_a_large_request_does_not_stop_those_behind_it() -> None:
    pod = Gated(WIDE)
    pod.gate.controller.fraction = 0.5
    pod.knows(work=1e6)
    pod.ask("runs", stream=True, prompt=text(160_000))
    pod.engine >> SSE + chunked(b"data: {}\n\n", last=False)
    large = pod.ask("large", prompt=text(300_000))
    pod.ask("small")
    assert (pod.asked, pod.counts) == (["runs", "small"], (2, 1))
    assert not large.has_news


@pytest.mark.parametrize("mode", ["off", "shadow"])
def test_a_gate_that_is_taken_away_lets_in_who_waits(mode: str) -> None:
    pod = Gated()
    for user in "abc":
        pod.ask(user)
    pod.reload(f"mode: '{mode}', max_in_flight: 1")
    pod.advance(0.25)
    assert sorted(pod.asked) == ["a", "b", "c"]
    for engine in pod.engines:
        engine >> ok()
    pod.assert_at_rest()


def test_a_wait_that_a_deadline_ends_is_written_down() -> None:
    pod = Gated()
    pod.ask("a")
    late = pod.ask("b", "standard", "x-request-timeout-ms: 1000")
    pod.advance(1.25)
    assert reason(late) == "timeout"
    assert pod.record.queue_ms == pytest.approx(1000, abs=260)
    pod.finish()


def test_whoever_hangs_up_on_an_answer_has_had_what_was_written() -> None:
    pod = Gated(WIDE)
    pod.gate.meter.itl_s = 0.05
    client = pod.ask("a")
    pod.advance(5.0)
    (ticket,) = pod.gate.running
    assert ticket.tokens > 50
    client.transport.abort()
    pod.settle()
    assert pod.gate.in_flight == 0
    assert ticket.tokens > 50


@pytest.mark.interpreted
def test_nonsense_in_what_was_learnt_costs_no_place() -> None:
    pod = Gated()

    def fails(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    pod.plane.estimates.learn = fails  # type: ignore[method-assign]
    pod.ask("a")
    with pytest.raises(AssertionError, match="leaving stage"):
        pod.finish()
    assert pod.counts == (0, 0)


def test_an_invitation_is_not_later_than_callers_obey() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 0, invited: 0.01")
    pod.knows(work=100)
    pod.ask("runs")
    waits = []
    for n in range(20):
        answer = told(pod.ask(str(n), "standard", "x-stainless-read-timeout: 600"))
        if b"retry-after-ms" in answer:
            waits.append(int(answer[b"retry-after-ms"]) / 1000)
    assert waits
    assert max(waits) <= 60 * 1.2
    assert len(waits) < 20, "the others are told that there is no use"
    emptied(pod)
