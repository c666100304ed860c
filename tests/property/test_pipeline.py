"""The kernel's rules, checked over every interleaving hypothesis can find.

Entered means left, once, in reverse; one answer or a client that left; capacity neither leaks nor
idles while someone waits; nothing is dispatched while an answer about it is pending; what failed gets
another place or an answer.
"""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sidecar.errors import INTERNAL, MALFORMED, OVERLOADED, QUEUE_TIMEOUT, RATE_LIMITED, UPSTREAM_RESET
from sidecar.exchange import DONE, FORWARDED, HELD, PARKED, RUNNING, WAITING, Exchange, Reply, Verdict
from sidecar.pipeline import Pipeline, Stage
from tests.property.kernel import LIMIT, Rig, exchange


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.all: list[Exchange] = []
        self.gone: set[Exchange] = set()

    def in_state(self, *states: int) -> list[Exchange]:
        return [x for x in self.all if x.state in states]

    @rule(
        mode=st.sampled_from(["pass", "pass", "pass", "hold", "refuse", "crash", "answered at once"]),
        which=st.integers(0, 1),
        pipeline=st.integers(0, 1),
    )
    def arrive(self, mode: str, which: int, pipeline: int) -> None:
        self.all.append(self.rig.arrive(mode, which, pipeline))

    @precondition(lambda self: self.in_state(FORWARDED))
    @rule(data=st.data())
    def upstream_answers(self, data: st.DataObject) -> None:
        x = data.draw(st.sampled_from(self.in_state(FORWARDED)))
        self.rig.answers[x] += 1
        x.pipeline.complete(x)

    @precondition(lambda self: self.in_state(FORWARDED))
    @rule(data=st.data(), mode=st.sampled_from(["pass", "refuse", "crash"]), at=st.sampled_from([None, 1]))
    def upstream_fails_then_retry(self, data: st.DataObject, mode: str, at: int | None) -> None:
        x = data.draw(st.sampled_from(self.in_state(FORWARDED)))
        self.rig.recorders[2].mode = mode
        x.pipeline.retry(x, at)
        self.rig.recorders[2].mode = "pass"

    @precondition(lambda self: self.all)
    @rule(
        data=st.data(),
        recovers=st.sampled_from(["no", "at once", "later", "crash"]),
        mode=st.sampled_from(["pass", "pass", "refuse", "crash"]),
        has_status=st.booleans(),
    )
    def attempt_fails(self, data: st.DataObject, recovers: str, mode: str, has_status: bool) -> None:
        """Of any exchange: what carried it may be late to say so."""
        rig = self.rig
        x = data.draw(st.sampled_from(self.all))
        before, attempt, entered = x.state, x.attempt, x.entered
        rig.recovers, rig.recorders[2].mode = recovers, mode
        if has_status:
            found = x.pipeline.recovers(x, "status", 503)
        else:
            x.pipeline.fail(x, Reply(UPSTREAM_RESET))
            found = recovers in ("at once", "later")
        rig.recovers, rig.recorders[2].mode = "no", "pass"
        if before == FORWARDED and found:
            assert recovers in ("at once", "later")
            assert x.attempt == attempt + (recovers == "at once")
            assert x.failure == ("status" if has_status else "upstream_reset")
            assert x.failed_with == (503 if has_status else 0)
        elif has_status:
            assert (x.state, x.attempt, x.entered) == (before, attempt, entered), "its answer passes"
            assert not found
        else:
            assert (x.state, x.attempt) == (DONE, attempt)

    @precondition(lambda self: self.rig.pausing)
    @rule(data=st.data())
    def pause_ends(self, data: st.DataObject) -> None:
        self.rig.go_on(data.draw(st.sampled_from(list(self.rig.pausing))))

    @precondition(lambda self: [x for x in self.all if x.pending])
    @rule(data=st.data(), verdict=st.sampled_from([None, RATE_LIMITED]))
    def pending_answer_comes(self, data: st.DataObject, verdict: Any) -> None:
        x = data.draw(st.sampled_from([x for x in self.all if x.pending]))
        before = x.state
        x.pipeline.release(x, Reply(verdict) if verdict else None)
        if verdict and before != DONE:
            assert (x.state, self.rig.reasons[x]) == (DONE, "rate_limited")

    @precondition(lambda self: self.in_state(WAITING))
    @rule(data=st.data())
    def wait_times_out(self, data: st.DataObject) -> None:
        x = data.draw(st.sampled_from(self.in_state(WAITING)))
        x.pipeline.resume(x, Reply(QUEUE_TIMEOUT))
        assert (x.state, self.rig.reasons[x]) == (DONE, "queue_timeout")

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def client_leaves(self, data: st.DataObject) -> None:
        x = data.draw(st.sampled_from(self.all))
        self.gone.add(x)
        x.pipeline.complete(x)

    @invariant()
    def capacity_is_respected_and_never_idle_while_someone_waits(self) -> None:
        holders = self.rig.capacity.holders
        assert len(holders) <= LIMIT
        assert holders == set(self.in_state(FORWARDED, HELD))
        if self.in_state(WAITING):
            assert len(holders) == LIMIT

    @invariant()
    def stages_hold_exactly_the_live_exchanges_that_entered(self) -> None:
        for index, recorder in zip((0, 1, 3), self.rig.recorders, strict=True):
            assert recorder.inside == {x for x in self.all if x.entered > index}
        assert all(x.entered == 0 for x in self.in_state(DONE))
        assert not self.in_state(RUNNING)

    @invariant()
    def what_is_held_waits_for_an_answer(self) -> None:
        assert all(x.pending for x in self.in_state(HELD))

    @invariant()
    def a_place_is_sought_for_what_is_under_way_alone(self) -> None:
        assert all(state == FORWARDED and failure for state, failure in self.rig.asked_about)

    @invariant()
    def picked_once_per_attempt(self) -> None:
        assert all(self.rig.recorders[2].entries[x] == x.attempt for x in self.in_state(FORWARDED))

    @invariant()
    def every_finished_exchange_was_answered_once_or_its_client_left(self) -> None:
        for x in self.all:
            assert self.rig.answers[x] <= 1
            if x.state == DONE:
                assert self.rig.answers[x] == 1 or x in self.gone


def test_mass_wakeup_does_not_recurse() -> None:
    rig = Rig()
    xs = [rig.arrive() for _ in range(5_000)]
    assert len(rig.sent) == LIMIT
    rig.on_forward = lambda x: x.pipeline.complete(x)
    for x in rig.sent[:LIMIT]:
        x.pipeline.complete(x)
    assert len(rig.sent) == 5_000
    assert all(x.state == DONE for x in xs)


def test_a_woken_exchange_runs_only_after_its_waker_has_left_every_stage() -> None:
    rig = Rig()
    xs = [rig.arrive() for _ in range(LIMIT + 1)]
    seen: list[int] = []
    rig.on_forward = lambda x: seen.append(xs[0].entered)
    xs[0].pipeline.complete(xs[0])
    assert seen == [0]


def test_an_exchange_settled_while_ready_is_not_run() -> None:
    """What one woken exchange does may settle another that was woken with it."""
    rig = Rig()
    *first, c, d = [rig.arrive() for _ in range(LIMIT + 2)]
    rig.on_forward = lambda x: d.pipeline.complete(d)
    ready = c.pipeline._ready
    ready.busy = True  # two complete within one turn
    first[0].pipeline.complete(first[0])
    first[1].pipeline.complete(first[1])
    ready.busy = False
    c.pipeline._drain()
    assert rig.sent == [*first, c]
    assert d.state == DONE
    assert d.entered == 0


def test_a_crash_while_forwarding_is_answered_and_settled(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()

    def crash(x: Exchange) -> None:
        raise ZeroDivisionError

    rig.on_forward = crash
    x = rig.arrive()
    assert rig.reasons[x] == INTERNAL.reason
    assert (x.state, x.entered, rig.answers[x]) == (DONE, 0, 1)
    assert "ZeroDivisionError" in caplog.text


def test_a_crash_while_answering_still_settles(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()

    def crash(x: Exchange) -> None:
        raise ZeroDivisionError

    rig.on_answer = crash
    x = rig.arrive("refuse")
    assert (x.state, x.entered, rig.answers[x]) == (DONE, 0, 1)
    assert "answering failed" in caplog.text


def test_what_fails_is_answered_once_whatever_finding_another_place_does(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for recovers in ("no", "crash"):
        rig = Rig()
        x = rig.arrive()
        rig.recovers = recovers
        x.pipeline.fail(x, Reply(UPSTREAM_RESET))
        x.pipeline.fail(x, Reply(UPSTREAM_RESET))
        assert (x.state, rig.answers[x], rig.reasons[x]) == (DONE, 1, "upstream_reset")
    assert "ZeroDivisionError" in caplog.text


def test_what_finds_another_place_is_not_answered() -> None:
    rig = Rig()
    x = rig.arrive()
    rig.recovers = "at once"
    x.pipeline.fail(x, Reply(UPSTREAM_RESET))
    assert (x.state, x.attempt, rig.answers[x], len(rig.sent)) == (FORWARDED, 2, 0, 2)
    assert (x.failure, x.failed_with) == ("upstream_reset", 0)
    assert x.pipeline.recovers(x, "status", 503)
    assert (x.attempt, x.failure, x.failed_with) == (3, "status", 503)


def test_without_anybody_to_ask_the_failure_is_the_answer() -> None:
    x, answered = alone(Stage())
    assert not x.pipeline.recovers(x, "status", 503)
    x.pipeline.fail(x, Reply(UPSTREAM_RESET))
    assert answered == ["upstream_reset"]


def test_an_answer_that_finds_the_client_gone_is_not_given_twice() -> None:
    rig = Rig()
    rig.on_answer = lambda x: x.pipeline.refuse(x, Reply(OVERLOADED))
    x = rig.arrive("refuse")
    assert (x.state, rig.answers[x]) == (DONE, 1)


def test_a_refused_exchange_knows_why_before_it_is_answered() -> None:
    rig = Rig()
    seen: list[str] = []
    rig.on_answer = lambda x: seen.append(x.reason)
    rig.arrive("refuse")
    assert seen == ["overloaded"]


def test_what_is_refused_from_the_start_enters_the_first_stage_alone() -> None:
    rig = Rig()
    x = exchange(rig.pipelines[0])
    x.refusal = Reply(MALFORMED)
    x.pipeline.start(x)
    assert [recorder.entries[x] for recorder in rig.recorders] == [1, 0, 0]
    assert (x.state, x.entered, rig.reasons[x]) == (DONE, 0, "malformed")


def test_what_an_answer_starts_waits_until_the_answered_exchange_is_settled() -> None:
    """A client's next request is in hand when the answer to its last one goes out."""
    rig = Rig()
    entered: list[int] = []

    def next_request(x: Exchange) -> None:
        rig.on_answer = None
        rig.on_forward = lambda _: entered.append(x.entered)
        rig.arrive()

    x = rig.arrive()
    rig.on_answer = next_request
    x.pipeline.refuse(x, Reply(OVERLOADED))
    assert entered == [0]


class Scripted(Stage):
    """Does what it is told on entry."""

    def __init__(self, enter: Any) -> None:
        self.on_request = enter  # type: ignore[method-assign]
        self.left = 0

    def on_complete(self, x: Exchange) -> None:
        self.left += 1


def alone(stage: Stage, forward: Any = None) -> tuple[Exchange, list[str]]:
    """An exchange that has run through `stage`, and the reasons it was answered with."""
    answered: list[str] = []
    pipeline = Pipeline(
        [stage],
        retry_at=1,
        forward=forward or (lambda x: None),
        answer=lambda x, reply: answered.append(reply.refusal.reason),
    )
    x = exchange(pipeline)
    pipeline.start(x)
    return x, answered


@pytest.mark.parametrize("verdict", [None, PARKED, Reply(OVERLOADED)])
def test_an_exchange_that_ends_inside_a_stage_stays_ended(verdict: Verdict) -> None:
    def hang_up(x: Exchange) -> Verdict:
        x.pipeline.complete(x)
        return verdict

    stage = Scripted(hang_up)
    x, answered = alone(stage, forward=lambda x: pytest.fail("dispatched"))
    assert (x.state, x.entered, stage.left, answered) == (DONE, 0, 1, [])


def test_a_no_that_comes_while_a_stage_parks_the_exchange_is_not_lost() -> None:
    def ask_and_park(x: Exchange) -> Verdict:
        x.pipeline.hold(x)
        x.pipeline.release(x, Reply(RATE_LIMITED))
        return PARKED

    stage = Scripted(ask_and_park)
    x, answered = alone(stage)
    assert (x.state, stage.left, answered) == (DONE, 1, ["rate_limited"])


def test_a_no_that_comes_for_one_who_waits_does_not_wait_for_its_turn() -> None:
    def ask_and_park(x: Exchange) -> Verdict:
        x.pipeline.hold(x)
        return PARKED

    stage = Scripted(ask_and_park)
    x, answered = alone(stage)
    x.pipeline.release(x, Reply(RATE_LIMITED))
    assert (x.state, stage.left, answered) == (DONE, 1, ["rate_limited"])


def test_a_crash_in_a_response_hook_costs_that_exchange_alone() -> None:
    class Fragile(Stage):
        def on_response(self, x: Exchange) -> None:
            raise ZeroDivisionError

        def on_data(self, x: Exchange, data: bytes) -> None:
            if data != b"fine":
                raise ZeroDivisionError

    answered: list[str] = []
    pipeline = Pipeline(
        [Fragile()],
        retry_at=1,
        forward=lambda x: None,
        answer=lambda x, reply: answered.append(reply.refusal.reason),
    )
    broken, well, bystander = (exchange(pipeline) for _ in range(3))
    for x in (broken, well, bystander):
        pipeline.start(x)
    assert pipeline.data(well, b"fine")
    assert not pipeline.response(broken)
    assert not pipeline.data(well, b"bad")
    assert answered == ["internal", "internal"]
    assert (broken.state, well.state, bystander.state) == (DONE, DONE, FORWARDED)


def test_a_late_answer_about_a_settled_exchange_changes_nothing() -> None:
    rig = Rig()
    x = rig.arrive("hold")
    assert x.state == HELD
    x.pipeline.complete(x)
    x.pipeline.release(x, Reply(RATE_LIMITED))
    x.pipeline.refuse(x, Reply(OVERLOADED))
    assert (x.state, rig.answers[x], rig.sent) == (DONE, 0, [])


def test_each_of_two_pending_answers_is_awaited() -> None:
    rig = Rig()
    rig.recorders[1].mode = "hold"
    x = rig.arrive("hold")
    x.pipeline.release(x)
    assert x.state == HELD
    x.pipeline.release(x)
    assert x.state == FORWARDED


def test_rewinding_further_charges_the_rewritten_request_again() -> None:
    rig = Rig()
    x = rig.arrive()
    x.pipeline.retry(x, at=1)
    entries = [recorder.entries[x] for recorder in rig.recorders]
    assert (entries, x.attempt, len(rig.sent)) == ([1, 2, 2], 2, 2)


def test_only_a_parked_exchange_can_be_resumed_and_only_a_forwarded_one_retried() -> None:
    rig = Rig()
    x = rig.arrive()
    with pytest.raises(AssertionError):
        x.pipeline.resume(x)
    x.pipeline.complete(x)
    with pytest.raises(AssertionError):
        x.pipeline.retry(x)


# Last, because the tests above fail sooner.
TestPipeline = Machine.TestCase


def test_what_is_refused_before_its_turn_is_seen_by_the_first_stage() -> None:
    rig = Rig()
    ready = rig.pipelines[0]._ready
    ready.busy = True  # another one is ending
    x = rig.arrive()
    x.pipeline.refuse(x, Reply(OVERLOADED))
    ready.busy = False
    x.pipeline._drain()
    assert (rig.recorders[0].entries[x], rig.recorders[1].entries[x]) == (1, 0)
    assert (x.state, x.entered, rig.reasons[x]) == (DONE, 0, OVERLOADED.reason)
