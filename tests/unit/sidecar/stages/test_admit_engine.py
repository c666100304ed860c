"""What has not begun gives way, what the engine is told, and what is learnt from its answers."""

import json

import pytest

from tests.harness.engine import SSE, End, chunked, ok
from tests.harness.wire import CHAT, Client, post
from tests.unit.sidecar.stages.gated import Gated, crowded, emptied, invited, text, told

# Giving way before the first token.


def blocked(pod: Gated, *, stream: bool = True) -> tuple[Client, Client]:
    """A batch request runs, and premium work waits for its place."""
    low = pod.ask("low", "batch", stream=stream)
    return low, pod.ask("high", "premium")


def test_work_without_a_first_token_gives_way_and_nobody_sees_it() -> None:
    pod = Gated()
    low, high = blocked(pod)
    assert pod.asked == ["low"]
    engine = pod.engine
    pod.advance(0.5)
    assert engine.aborted, "the GPU stops"
    assert (pod.asked, pod.counts, low.has_news) == (["low", "high"], (1, 1), False)
    assert pod.count("preemptions_total", how="requeued", **{"class": "batch"}) == 1
    pod.engine >> ok(b"first")
    pod.engine >> ok(b"then")
    assert [told(client).body for client in (high, low)] == [b"first", b"then"]
    assert (pod.record.attempts, pod.record.reason) == (2, "")
    pod.assert_at_rest()


def test_it_keeps_its_place_before_others_of_its_class() -> None:
    pod = Gated()
    _, high = blocked(pod)
    pod.ask("other", "batch")
    pod.advance(0.5)
    pod.finish()
    assert pod.asked[-1] == "low"
    assert told(high).status == 200


def test_a_head_alone_is_no_token() -> None:
    """Engines send the head of a stream when they accept the request."""
    pod = Gated()
    low, _ = blocked(pod)
    pod.engine >> SSE
    pod.advance(0.5)
    assert (pod.asked[-1], low.has_news) == ("high", False)


@pytest.mark.parametrize("admission", ["max_in_flight: 1", "max_in_flight: 1, preempt: off"])
def test_an_answer_that_has_begun_goes_on(admission: str) -> None:
    pod = Gated(admission)
    low, _ = blocked(pod)
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    pod.advance(0.5)
    assert (pod.asked, pod.counts) == (["low"], (1, 1))
    pod.engine >> chunked(b"data: 2\n\n")
    assert told(low).body == b"data: 1\n\ndata: 2\n\n"


def test_off_nobody_gives_way() -> None:
    pod = Gated("max_in_flight: 1, preempt: off")
    _, high = blocked(pod)
    pod.advance(0.75)
    assert (pod.asked, high.has_news) == (["low"], False)


def test_a_body_that_was_not_kept_cannot_be_sent_again() -> None:
    pod = Gated()
    body = b'{"user": "g", "text": "%b"}' % (b"word " * 20_000)  # the engine is busy with it for long
    pod.client() >> post("/generate", body, "x-priority: batch")
    pod.ask("high", "premium")
    pod.advance(0.5)
    assert (pod.asked, pod.counts) == (["g"], (1, 1))


def test_an_error_that_has_begun_is_an_answer_too() -> None:
    pod = Gated()
    low, _ = blocked(pod)
    pod.engine >> b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nno"
    pod.advance(0.5)
    pod.engine >> b" m."
    assert (told(low).status, pod.record.reason) == (404, "")


def test_equals_do_not_give_way() -> None:
    pod = Gated()
    pod.ask("a", "premium", stream=True)
    pod.ask("b", "premium")
    pod.advance(0.75)
    assert pod.asked == ["a"]


def test_where_it_is_configured_the_lowest_class_ends_even_if_it_has_begun() -> None:
    pod = Gated("max_in_flight: 1, preempt: started")
    low, _ = blocked(pod)
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    engine = pod.engine
    pod.advance(0.5)
    assert (pod.asked[-1], engine.aborted) == ("high", True)
    answer = told(low)
    assert (answer.status, answer.complete) == (200, False), "cut short it must not look complete"
    assert answer.body.startswith(b"data: 1\n\n")
    assert b'"code":"preempted"' in answer.body
    assert pod.count("preemptions_total", how="ended", **{"class": "batch"}) == 1
    assert pod.record.reason == "preempted"


def test_only_the_lowest_class_ends() -> None:
    pod = Gated("max_in_flight: 1, preempt: started")
    low = pod.ask("low", "standard", stream=True)
    pod.ask("high", "premium")
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    pod.advance(0.75)
    assert (pod.asked, told(low).complete) == (["low"], False)
    assert pod.engine.is_open


# What the engine is told.


@pytest.mark.parametrize(("cls", "priority"), [("premium", 0), ("standard", 1), ("batch", 2)])
def test_an_engine_with_priorities_is_told_the_class(cls: str, priority: int) -> None:
    pod = Gated(engine="priority: on")
    pod.ask("a", cls, priority=-100)
    assert json.loads(pod.engine.request().body) == {"user": "a", "priority": priority}


def test_others_get_the_body_as_it_came() -> None:
    pod = Gated()
    body = b'{"user" : "a",\n"priority": -100}'
    pod.client() >> post(CHAT, body)
    assert pod.engine.request().body == body


def test_a_class_in_the_body_does_not_hide_who_was_invited() -> None:
    pod = Gated(engine="priority: on")
    crowded(pod)
    seconds = invited(pod, "back")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    pod.ask("back")
    pod.finish()
    pod.finish()
    assert pod.record.invited


# What it learns.


def expected(pod: Gated) -> float:
    """Tokens that the next answer is expected to have."""
    return pod.plane.estimates.expect("anonymous", "other", 100, None)[2]


USAGE = b'"usage":{"prompt_tokens":20,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}'


def answered(pod: Gated, *pieces: bytes, stream: bool) -> float:
    """What is expected after many of these answers."""
    for _ in range(40):
        client = pod.ask("a", stream=stream)
        for piece in pieces:
            pod.engine >> piece
        assert told(client).complete
    return expected(pod)


def test_the_length_of_answers_is_learnt_from_usage() -> None:
    pod = Gated()
    before = expected(pod)
    assert answered(pod, ok(b'{"choices":[{"text":"..."}],%b}' % USAGE), stream=False) < before / 2
    assert (pod.record.answer_tokens, pod.record.reason) == (7, "")
    prompt, fresh, _ = pod.plane.estimates.expect("anonymous", "other", 100, None)
    assert fresh < prompt / 2, "most of the prompt was cached"


def test_of_several_answers_at_once_each_counts() -> None:
    pod = Gated()
    for _ in range(40):
        pod.ask("a", n=7)
        pod.finish(b"{%b}" % USAGE.replace(b":7,", b":700,"))
    assert expected(pod) == pytest.approx(100, rel=0.2)


def test_errors_say_nothing_of_how_fast_the_engine_is() -> None:
    pod = Gated()
    before = pod.gate.meter.prompt_rate
    for _ in range(10):
        pod.ask("a", prompt=text(100_000))
        pod.engine >> b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    assert pod.gate.meter.prompt_rate == before


def test_and_from_the_last_event_of_a_stream() -> None:
    pod = Gated()
    token = chunked(b'data: {"text":"a"}\n\n', last=False)
    last = chunked(b'data: {"choices":[],%b}\n\n' % USAGE, last=False)
    before = expected(pod)
    assert answered(pod, SSE, token, last, chunked(b"data: [DONE]\n\n"), stream=True) < before / 2
    assert pod.record.answer_tokens == 7


def test_events_are_counted_where_there_is_no_usage() -> None:
    pod = Gated()
    events = [chunked(b'data: {"text":"%d"}\n\n' % i, last=False) for i in range(10)]
    assert answered(pod, SSE, *events, chunked(b"data: [DONE]\n\n"), stream=True) < 200
    assert pod.record.answer_tokens in (10, 11)


def test_an_answer_without_either_is_judged_by_its_duration() -> None:
    pod = Gated()
    before = expected(pod)
    assert answered(pod, ok(b"{}"), stream=False) < before


@pytest.mark.parametrize("end", ["client_gone", "upstream_reset", "error"])
def test_answers_that_are_not_whole_teach_nothing(end: str) -> None:
    pod = Gated()
    before = expected(pod)
    for _ in range(20):
        client = pod.ask("a", stream=True)
        if end == "error":
            pod.engine >> b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(USAGE) + USAGE
            continue
        pod.engine >> SSE + chunked(b"data: {%b}\n\n" % USAGE, last=False)
        if end == "client_gone":
            client >> End.RESET
        else:
            pod.engine >> End.RESET
        assert pod.record.reason == end
    assert expected(pod) == before
    pod.assert_at_rest()


def test_what_a_caller_allows_at_most_bounds_what_is_expected() -> None:
    pod = Gated()
    pod.ask("a", max_tokens=5)
    (ticket,) = pod.gate.running
    assert ticket.answer == 5
    pod.finish()
    pod.ask("a", max_tokens=5, n=3)
    (ticket,) = pod.gate.running
    assert ticket.answer == 15
