"""Who runs, who waits and for how long, and what the others are told."""

import pytest

from sidecar.exchange import DONE, FORWARDED, WAITING, Exchange
from sidecar.flow.gate import Gate
from sidecar.net.timers import Timers
from sidecar.pipeline import Pipeline, Stage
from sidecar.settings import Admission
from sidecar.stages.admit import Admit
from tests.harness.clock import FakeClock
from tests.unit.sidecar.stages.asker import Asker


class Reader(Stage):
    """Stands for Identify: POSTs are work."""

    def on_request(self, x: Exchange) -> None:
        x.is_work = x.request.method == b"POST"


class Rig(Asker):
    """A gate, its stage, and time."""

    def __init__(self, **admission: object) -> None:
        defaults = {"max_in_flight": 1, "max_queue": 3, "queue_timeout_s": 10.0}
        settings = Admission(**defaults | admission)  # type: ignore[arg-type]
        self.gate: Gate[Exchange] = Gate(settings.max_in_flight, settings.max_queue)
        clock = FakeClock()
        timers = Timers(clock.now)
        super().__init__(Reader(), Admit(settings, self.gate, clock, timers), clock=clock, timers=timers)

    def reload(self, **admission: int | str) -> Pipeline:
        """What the application does: the gate learns the new numbers, new requests get a new stage."""
        settings = Admission(**admission)  # type: ignore[arg-type]
        self.gate.limit, self.gate.max_queue = settings.max_in_flight, settings.max_queue
        admit = Admit(settings, self.gate, self.clock, self.timers)
        admit.let_in()
        return self.pipeline_of(Reader(), admit)

    def ask_several(self, count: int) -> list[Exchange]:
        return [self.ask() for _ in range(count)]

    def counts(self) -> tuple[int, int]:
        """In flight, queued."""
        return self.gate.in_flight, self.gate.queued


def finish(x: Exchange) -> None:
    """The engine has answered, or the client has left."""
    x.pipeline.complete(x)


def states(xs: list[Exchange]) -> list[int]:
    return [x.state for x in xs]


def test_work_runs_up_to_the_limit_and_waits_beyond_it() -> None:
    rig = Rig(max_in_flight=2)
    xs = rig.ask_several(4)
    assert states(xs) == [FORWARDED, FORWARDED, WAITING, WAITING]
    assert rig.counts() == (2, 2)
    assert [x.parked for x in xs] == [0.0, 0.0, rig.clock.now(), rig.clock.now()]


def test_slots_go_out_in_order_of_arrival() -> None:
    rig = Rig()
    xs = rig.ask_several(4)
    for x in xs:
        assert rig.forwarded[-1] is x
        finish(x)
    assert rig.forwarded == xs
    assert rig.counts() == (0, 0)


def test_the_wait_is_written_down() -> None:
    rig = Rig()
    first, second = rig.ask_several(2)
    rig.pass_time(2.5)
    finish(first)
    assert (first.waited, second.waited) == (0.0, 2.5)
    rig.pass_time(20.0)
    finish(second)
    assert (second.waited, rig.reason(second)) == (2.5, "")


def test_who_finds_the_queue_full_is_refused_at_once() -> None:
    rig = Rig()
    *_, last = rig.ask_several(5)
    assert (rig.reason(last), last.parked, rig.counts()) == ("queue_full", 0.0, (1, 3))


def test_without_a_queue_nobody_waits() -> None:
    rig = Rig(max_queue=0)
    _, second = rig.ask_several(2)
    assert rig.reason(second) == "queue_full"


def test_nobody_waits_longer_than_the_queue_timeout() -> None:
    rig = Rig()
    rig.ask()
    x = rig.ask()
    rig.pass_time(9.75)
    assert x.state == WAITING
    rig.pass_time(0.5)
    assert (rig.reason(x), x.state, rig.counts()) == ("queue_timeout", DONE, (1, 0))
    assert x.waited == pytest.approx(10.0, abs=0.25)


def test_who_was_let_in_does_not_time_out() -> None:
    rig = Rig()
    first, second = rig.ask_several(2)
    finish(first)
    rig.pass_time(30.0)
    assert (second.state, second.timer, rig.reason(second)) == (FORWARDED, None, "")


def test_a_client_that_leaves_while_it_waits_gives_up_its_place() -> None:
    rig = Rig()
    first, second, third, fourth = rig.ask_several(4)
    rig.pass_time(1.0)
    finish(second)
    assert (second.waited, second.timer) == (1.0, None)
    assert rig.counts() == (1, 2)
    rig.ask()
    assert rig.counts() == (1, 3), "its place is free"
    finish(first)
    finish(third)
    assert rig.forwarded[1:] == [third, fourth]
    rig.pass_time(30.0)
    assert rig.reason(second) == ""


def test_the_caller_is_invited_back_after_the_predicted_wait_and_a_little_chance() -> None:
    rig = Rig(max_in_flight=3, max_queue=2)
    *inside, _, _ = rig.ask_several(5)
    refused = rig.ask()
    assert rig.answers[refused].retry_after_s == pytest.approx(3 * 1.0 * 1.2), "nothing is known: 1 s each"
    finish(inside[0])
    rig.ask()
    rig.pass_time(4.0)
    finish(inside[1])
    rig.ask()
    assert rig.answers[rig.ask()].retry_after_s == pytest.approx(3 * 4.0 * 1.2)


def test_the_invitation_grows_with_the_queue() -> None:
    waits = []
    for max_queue in (1, 2, 8):
        rig = Rig(max_queue=max_queue)
        *_, last = rig.ask_several(max_queue + 2)
        waits.append(rig.answers[last].retry_after_s)
    assert waits == pytest.approx([2.4, 3.6, 10.8])


def test_a_timeout_invites_too() -> None:
    rig = Rig()
    rig.ask()
    x = rig.ask()
    rig.pass_time(11.0)
    assert rig.answers[x].retry_after_s == pytest.approx(2 * 1.0 * 1.2)


def test_what_is_not_work_passes_a_full_gate_and_takes_no_slot() -> None:
    rig = Rig(max_queue=0)
    rig.ask()
    x = rig.ask(method="GET", target="/v1/models")
    assert (x.state, rig.counts()) == (FORWARDED, (1, 0))
    finish(x)
    assert rig.counts() == (1, 0)


def test_off_means_that_everything_runs() -> None:
    rig = Rig(mode="off", max_queue=0)
    xs = rig.ask_several(5)
    assert states(xs) == [FORWARDED] * 5
    for x in xs:
        finish(x)
    assert rig.counts() == (0, 0)


def test_a_slot_is_kept_while_the_attempt_changes() -> None:
    rig = Rig()
    first, second = rig.ask_several(2)
    first.pipeline.retry(first)
    assert (first.state, second.state, rig.counts()) == (FORWARDED, WAITING, (1, 1))


def test_a_rewritten_request_queues_again() -> None:
    rig = Rig()
    first, second = rig.ask_several(2)
    first.pipeline.retry(first, at=1)
    assert (first.state, second.state, rig.counts()) == (WAITING, FORWARDED, (1, 1))


def test_who_queues_again_has_all_its_time_again() -> None:
    rig = Rig()
    first, second, third = rig.ask_several(3)
    rig.pass_time(8.0)
    finish(first)
    second.pipeline.retry(second, at=1)
    assert (second.state, third.state) == (WAITING, FORWARDED)
    rig.pass_time(8.0)
    assert second.state == WAITING
    finish(third)
    assert (second.state, second.waited) == (FORWARDED, 16.0)


# Reloads.


def test_a_smaller_limit_waits_for_departures() -> None:
    rig = Rig(max_in_flight=3)
    *inside, waiting = rig.ask_several(4)
    rig.reload(max_in_flight=1, max_queue=3)
    for x in inside[:2]:
        finish(x)
        assert waiting.state == WAITING
    finish(inside[2])
    assert waiting.state == FORWARDED


def test_a_larger_limit_lets_in_all_who_fit_at_the_next_departure() -> None:
    rig = Rig()
    first, *waiting = rig.ask_several(4)
    rig.reload(max_in_flight=2, max_queue=3)
    finish(first)
    assert states(waiting) == [FORWARDED, FORWARDED, WAITING]


def test_a_larger_limit_lets_in_all_who_fit_in_order_of_arrival() -> None:
    rig = Rig()
    first, *waiting = rig.ask_several(4)
    pipeline = rig.reload(max_in_flight=3, max_queue=3)
    newcomer = rig.ask(pipeline=pipeline)
    assert states([first, *waiting]) == [FORWARDED, FORWARDED, FORWARDED, WAITING]
    assert newcomer.state == WAITING, "it came last"
    finish(first)
    finish(waiting[0])
    assert rig.forwarded == [first, *waiting, newcomer]


def test_turned_off_by_a_reload_the_gate_still_empties_its_queue() -> None:
    rig = Rig()
    first, second = rig.ask_several(2)
    passing = rig.ask(pipeline=rig.reload(mode="off", max_in_flight=1))
    assert (passing.state, second.state) == (FORWARDED, WAITING)
    finish(first)
    assert second.state == FORWARDED
    finish(passing)
    finish(second)
    assert rig.counts() == (0, 0)
