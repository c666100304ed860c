"""What Identify takes until the end of an exchange: room for its body, and an alarm for its deadline."""

from collections.abc import Callable

import pytest

from sidecar.errors import STALLED
from sidecar.exchange import DONE, FORWARDED, WAITING, Exchange, Reply, Verdict
from sidecar.pipeline import Stage
from tests.unit.sidecar.stages.asker import STEP_S, Desk, send

TIGHT = "max_buffered_bytes: 2048\nmax_body_bytes: 2048"
WHOLE, READ = "x-request-timeout-ms: 4000", "x-stainless-read-timeout: 2"


def held(desk: Desk, *xs: Exchange) -> list[int]:
    """All that is taken, and what each of `xs` took."""
    return [desk.bodies.held, *(x.held for x in xs)]


# Room for bodies.


def test_what_comes_with_the_head_is_counted() -> None:
    desk = Desk(TIGHT)
    whole = desk.ask(body=b"x" * 100)
    begun = desk.ask(body=b"x" * 10, length=500, complete=False)
    assert held(desk, whole, begun) == [110, 100, 10]


def test_what_comes_later_is_counted_when_it_comes() -> None:
    desk = Desk(TIGHT)
    x = desk.ask(body=b"", length=None, complete=False)
    assert held(desk, x) == [0, 0]
    for size in (1, 100, 1000):
        send(x, b"x" * size, complete=False)
    assert held(desk, x) == [1101, 1101]
    send(x, b"x", complete=True)
    assert held(desk, x) == [1102, 1102], "it is kept until the end: it may be sent again"
    assert x.state == FORWARDED


def test_who_finds_no_room_is_not_asked_for_its_body() -> None:
    desk = Desk(TIGHT)
    first = desk.ask(body=b"x" * 2000)
    x = desk.ask(body=b"x" * 49, length=100, complete=False)
    assert (desk.reason(x), x.client.wanted) == ("overloaded", 0)  # type: ignore[attr-defined]
    assert desk.answers[x].retry_after_s == pytest.approx(1.2)
    assert desk.reason(desk.ask(body=b"x" * 49)) == "overloaded"
    assert held(desk, first) == [2000, 2000]
    assert desk.reason(desk.ask(body=b"x" * 48)) == "", "this one fits"


def test_a_body_that_outgrows_the_room_is_refused_and_makes_room() -> None:
    desk = Desk(TIGHT)
    first = desk.ask(body=b"x" * 1000)
    x = desk.ask(body=b"x" * 1000, length=None, complete=False)
    send(x, b"x" * 49, complete=True)
    assert (desk.reason(x), x.state, x.body) == ("overloaded", DONE, None)
    assert held(desk, first) == [1000, 1000]
    send(x, b"x" * 10, complete=True)
    assert held(desk) == [1000], "what it sends into the void is not kept"


def test_a_body_that_is_not_kept_takes_no_room() -> None:
    desk = Desk(TIGHT)
    upload = desk.ask(target="/v1/files", body=b"x" * 5000, length=None, complete=False)
    turned_away = desk.ask(target="/sleep", body=b"x" * 100)
    send(upload, b"x" * 5000, complete=True)
    assert held(desk, upload, turned_away) == [0, 0, 0]


class Behind(Stage):
    """A later stage, which refuses or fails when it is told to."""

    def on_request(self, x: Exchange) -> Verdict:
        then = dict(x.request.fields).get(b"then")
        if then == b"fail":
            raise ZeroDivisionError
        return Reply(STALLED) if then == b"refuse" else None


def engine_answers(desk: Desk) -> Exchange:
    x = desk.ask(body=b"x" * 100)
    x.pipeline.complete(x)
    return x


def engine_fails(desk: Desk) -> Exchange:
    x = desk.ask(body=b"x" * 100)
    x.pipeline.refuse(x, Reply(STALLED))
    return x


def later_stage_refuses(desk: Desk) -> Exchange:
    return desk.ask("then: refuse", body=b"x" * 100)


def later_stage_fails(desk: Desk) -> Exchange:
    return desk.ask("then: fail", body=b"x" * 100)


def client_leaves(desk: Desk) -> Exchange:
    x = desk.ask(body=b"x" * 100, length=None, complete=False)
    x.pipeline.complete(x)
    x.pipeline.complete(x)
    return x


def body_is_too_large(desk: Desk) -> Exchange:
    x = desk.ask(body=b"x" * 1000, length=None, complete=False)
    send(x, b"x" * 2000, complete=False)
    return x


def time_runs_out(desk: Desk) -> Exchange:
    x = desk.ask(WHOLE, body=b"x" * 1000, length=None, complete=False)
    desk.pass_time(5.0)
    return x


@pytest.mark.interpreted
@pytest.mark.parametrize(
    "end",
    [
        engine_answers,
        engine_fails,
        later_stage_refuses,
        later_stage_fails,
        client_leaves,
        body_is_too_large,
        time_runs_out,
    ],
)
def test_however_it_ends_the_room_is_given_back_once(end: Callable[[Desk], Exchange]) -> None:
    desk = Desk(TIGHT, Behind())
    stays = desk.ask(body=b"x" * 7)
    x = end(desk)
    assert (x.state, desk.bodies.held) == (DONE, 7)
    stays.pipeline.complete(stays)
    assert desk.bodies.held == 0


# Deadlines.


@pytest.mark.parametrize("ago_s", [4.0, 100.0])
def test_a_deadline_that_has_passed_is_passed_at_once(ago_s: float) -> None:
    desk = Desk("trusted_proxies: [10.0.0.0/8]")
    start = f"x-request-start: t={desk.clock.wall() - ago_s:.3f}"
    x = desk.ask(WHOLE, start, peer="10.0.0.1", body=b"", length=5, complete=False)
    assert (desk.reason(x), x.client.wanted, desk.forwarded) == ("timeout", 0, [])  # type: ignore[attr-defined]


def test_the_wait_behind_another_request_of_the_connection_counts() -> None:
    """A deadline is an instant: it does not move because we came to the request late."""
    desk = Desk()
    late = desk.ask(WHOLE, ago_s=4.0)
    assert (desk.reason(late), desk.forwarded) == ("timeout", [])
    x = desk.ask(WHOLE, ago_s=3.0)
    desk.pass_time(1.0 - STEP_S)
    assert x.state == FORWARDED
    desk.pass_time(2 * STEP_S)
    assert desk.reason(x) == "timeout"


def test_a_start_that_a_proxy_names_is_an_instant_too() -> None:
    desk = Desk("trusted_proxies: [10.0.0.0/8]")
    start = f"x-request-start: t={desk.clock.wall() - 3:.3f}"
    x = desk.ask(WHOLE, start, peer="10.0.0.1", ago_s=2.0)
    assert x.deadline == pytest.approx(desk.clock.now() + 1.0), "the three seconds hold these two"


@pytest.mark.parametrize("word", [WHOLE, "x-stainless-read-timeout: 4"])
@pytest.mark.parametrize("complete", [False, True])
def test_before_the_first_byte_every_word_ends_it(word: str, complete: bool) -> None:
    """While its body comes, and while the engine works."""
    desk = Desk()
    x = desk.ask(word, complete=complete, length=None)
    desk.pass_time(4.0 - STEP_S)
    assert x.state == (FORWARDED if complete else WAITING)
    desk.pass_time(2 * STEP_S)
    assert (desk.reason(x), x.state, x.alarm) == ("timeout", DONE, None)


def test_what_is_no_work_ends_too() -> None:
    desk = Desk()
    query = desk.ask(WHOLE, method="GET", target="/health")
    upload = desk.ask(WHOLE, target="/v1/files", complete=False)
    desk.pass_time(5.0)
    assert [desk.reason(query), desk.reason(upload)] == ["timeout", "timeout"]


def test_after_the_first_byte_a_read_timeout_is_no_deadline() -> None:
    desk = Desk()
    x = desk.ask(READ)
    desk.pass_time(1.0)
    desk.responds(x)
    desk.pass_time(600.0)
    assert (x.state, desk.reason(x)) == (FORWARDED, "")


@pytest.mark.parametrize("words", [[WHOLE], [WHOLE, READ]])
def test_after_the_first_byte_the_whole_answer_has_the_whole_time(words: list[str]) -> None:
    desk = Desk()
    x = desk.ask(*words)
    desk.pass_time(1.0)
    desk.responds(x)
    desk.pass_time(3.0 - STEP_S)
    assert x.state == FORWARDED
    desk.pass_time(2 * STEP_S)
    assert (desk.reason(x), x.state, x.alarm) == ("timeout", DONE, None)


def test_a_first_byte_that_comes_with_the_deadline_is_too_late_for_the_whole() -> None:
    desk = Desk()
    x = desk.ask(WHOLE)
    desk.clock.advance(5.0)  # the head was read before the timers had their turn
    desk.responds(x)
    assert x.state == FORWARDED
    desk.pass_time(2 * STEP_S)
    assert desk.reason(x) == "timeout"


@pytest.mark.interpreted
@pytest.mark.parametrize("fields", [[WHOLE], [WHOLE, "expect: nothing"], [WHOLE, "then: refuse"]])
def test_when_it_is_over_no_alarm_goes_off(fields: list[str]) -> None:
    desk = Desk("", Behind())
    x = desk.ask(*fields)
    before = desk.reason(x)
    x.pipeline.complete(x)
    assert x.alarm is None
    desk.pass_time(5.0)
    assert desk.reason(x) == before
