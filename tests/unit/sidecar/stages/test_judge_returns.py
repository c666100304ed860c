"""How an ejected engine comes back, and how its ticket follows it."""

import pytest

from tests.harness.engine import End, chunked
from tests.unit.sidecar.stages.judging import EVENTS, FINE, NO, OWN, STREAM, TOKEN, Judged

AGAIN = "retry: {base_ms: 1}"


def where(pod: Judged) -> str:
    return "engine" if pod.engine.endpoint.name == OWN else "peer"


class TestProbation:
    def test_nothing_is_tried_before_its_time(self) -> None:
        pod = Judged()
        pod.ejected()
        pod.pass_time(29.0)
        assert pod.goes() == "peer"

    def test_one_request_at_a_time_is_tried(self) -> None:
        pod = Judged()
        pod.on_probation()
        trial = pod.ask()
        engine = pod.engine
        assert where(pod) == "engine"
        for _ in range(3):
            assert pod.goes() == "peer"
        engine >> FINE
        assert trial.answer(b"POST").status == 200
        assert pod.goes() == "engine"

    def test_after_three_good_ones_it_is_back_slowly(self) -> None:
        pod = Judged()
        pod.on_probation()
        for _ in range(3):
            assert pod.is_out
            assert pod.goes() == "engine"
        assert not pod.is_out
        assert (pod.plane.state(), pod.plane.fleet.share) == ("serving", 0.1)
        pod.pass_time(15.0)
        assert pod.plane.fleet.share == 0.5
        pod.pass_time(15.0)
        assert pod.plane.fleet.share == 1.0

    def test_then_its_ticket_is_given_back(self) -> None:
        pod = Judged()
        pod.on_probation()
        for _ in range(3):
            pod.goes()
        assert pod.judge.uneject() == ("pod-0",)
        assert pod.board.tickets
        pod.pass_time(1.0)
        assert pod.board.tickets == {}
        pod.pass_time(1.0)
        assert (pod.judge.uneject(), pod.is_out) == ((), False)

    def test_without_traffic_it_ends_as_well(self) -> None:
        pod = Judged()
        pod.on_probation()
        pod.pass_time(30.0)
        assert not pod.is_out
        pod.pass_time(2.0)
        assert (pod.board.tickets, pod.board.asked) == ({}, ["pod-0"])

    @pytest.mark.parametrize("retry", ["", AGAIN])
    @pytest.mark.parametrize("how", [NO, End.RESET])
    def test_a_bad_one_ejects_it_for_longer(self, retry: str, how: bytes | End) -> None:
        pod = Judged(retry=retry or "retry: {mode: 'off'}")
        if retry:
            pod.plane.retries.deposit(1e9, pod.clock.now())
            pod.reload("consecutive_5xx: 5, enforcing_consecutive_local_origin_failure: 100")
            for _ in range(5):  # each is answered by a peer
                pod.ask()
                pod.engine >> NO
                pod.engine >> FINE
            pod.board.call()
            pod.pass_time(31.0)
        else:
            pod.on_probation()
        pod.ask()
        assert where(pod) == "engine"
        pod.engine >> how
        assert pod.is_out
        assert pod.judge.until == pod.clock.now() + 60.0
        assert (where(pod), pod.goes()) == ("peer" if retry else "engine", "peer")

    def test_its_ticket_becomes_as_long(self) -> None:
        pod = Judged()
        pod.on_probation()
        hurries: list[int] = []
        pod.judge.asks = lambda: not hurries.append(1)  # type: ignore[func-returns-value]
        pod.ask()
        pod.engine >> NO
        assert hurries
        pod.pass_time(1.0)
        ends, *_ = pod.board.tickets["pod-0"]
        assert ends == pytest.approx(pod.judge.until + 30.0, abs=0.01)
        assert pod.board.asked == ["pod-0", "pod-0"]
        pod.pass_time(45.0)
        assert pod.is_out, "the first ticket would be over"
        pod.pass_time(15.0)
        for _ in range(3):
            assert pod.goes() == "engine"
        assert not pod.is_out
        assert pod.board.asked == ["pod-0", "pod-0"]

    @pytest.mark.parametrize("how", ["leaves", "404"])
    def test_one_that_says_nothing_makes_room_for_another(self, how: str) -> None:
        pod = Judged()
        pod.on_probation()
        client = pod.ask()
        if how == "leaves":
            client >> End.RESET
        else:
            pod.engine >> FINE.replace(b"200 OK", b"404 No")
        assert pod.is_out
        assert pod.goes() == "engine"

    def test_one_whose_caller_leaves_the_queue_makes_room(self) -> None:
        pod = Judged()
        pod.ejected()
        pod.gate.seats = 1
        pod.pass_time(30.0)
        pod.plane.fleet.own.ejected = False
        running = pod.ask(STREAM)  # it has been there all the time
        pod.plane.fleet.own.ejected = True
        first = pod.ask(STREAM)
        assert pod.gate.queued == 1
        first >> End.RESET
        assert pod.gate.queued == 0
        pod.ask(STREAM)
        assert pod.gate.queued == 1, "it is the next trial"
        running >> End.RESET

    def test_one_that_goes_to_a_peer_from_the_queue_makes_room(self) -> None:
        pod = Judged()
        pod.ejected()
        pod.gate.seats = 1
        pod.pass_time(30.0)
        pod.plane.fleet.own.ejected = False
        running = pod.ask(STREAM)
        pod.plane.fleet.own.ejected = True
        pod.ask(STREAM)
        assert pod.gate.queued == 1
        pod.advance(0.25)
        assert (pod.gate.queued, where(pod)) == (0, "peer")
        running >> End.RESET
        assert pod.goes() == "engine"

    def test_one_that_the_stage_behind_refuses_makes_room(self) -> None:
        pod = Judged()
        pod.on_probation()
        pod.endpoint.max_requests = 0
        assert pod.ask().answer(b"POST").reason == "overloaded"
        pod.endpoint.max_requests = 10
        assert pod.goes() == "engine"

    def test_one_that_is_slow_is_bad(self) -> None:
        pod = Judged()
        pod.on_probation()
        for n in (1, 2):
            pod.hears(n, pace=(9, 0.0001, 0, 0.0), models=tuple(pod.catalog.labels()))
        pod.plane.fleet.models = frozenset(pod.catalog.labels())
        client = pod.ask(STREAM)
        pod.advance(1.0)
        pod.engine >> EVENTS + chunked(TOKEN)
        assert client.answer(b"POST").complete
        assert pod.judge.until == pod.clock.now() + 60.0

    def test_a_reload_forgets_the_one_under_way(self) -> None:
        pod = Judged()
        pod.on_probation()
        pod.ask()
        engine = pod.engine
        pod.reload("consecutive_5xx: 7")
        engine >> NO
        assert (pod.is_out, pod.judge.until) == (False, 0.0)


class TestTickets:
    @pytest.mark.parametrize("by", ["view", "notice"])
    def test_peers_may_eject_us(self, by: str) -> None:
        pod = Judged()
        pod.board.ejects("pod-0", 65.0, "pod-1", "pod-2")
        if by == "notice":
            pod.judge.hear_ejected(pod.board.ejected)
        else:
            pod.board.call()
        assert pod.is_out
        pod.board.call()
        pod.pass_time(31.0)
        assert pod.is_out
        for _ in range(3):
            assert pod.goes() == "engine"
        pod.pass_time(2.0)
        assert (pod.is_out, pod.board.tickets, pod.board.asked) == (False, {}, [])

    def test_a_notice_of_our_own_ticket_may_come_before_the_answer(self) -> None:
        pod = Judged()
        pod.fails()
        pod.board.ejects("pod-0", 65.0)
        pod.judge.hear_ejected(pod.board.ejected)
        assert (pod.is_out, pod.judge.votes()) == (True, ())
        pod.board.call()
        assert (pod.is_out, pod.board.asked) == (True, [])

    def test_one_that_is_gone_ends_the_ejection(self) -> None:
        """The mesh has become smaller, and its cap."""
        pod = Judged()
        pod.ejected()
        pod.board.tickets.clear()
        pod.judge.hear_ejected(())
        assert pod.is_out, "a notice may be of before"
        pod.board.settled = False
        pod.board.call()
        assert pod.is_out, "keys are lost, and are said again"
        pod.board.settled = True
        pod.board.call()
        assert (pod.is_out, pod.judge.until, pod.plane.fleet.share) == (False, 0.0, 0.1)
        pod.pass_time(2.0)
        assert pod.judge.uneject() == ()

    def test_a_new_one_while_the_old_one_is_given_back(self) -> None:
        pod = Judged()
        pod.on_probation()
        for _ in range(3):
            pod.goes()
        pod.plane.fleet.share = 1.0
        pod.fails()
        assert (pod.judge.uneject(), len(pod.judge.votes())) == (("pod-0",), 1)
        pod.board.call()
        assert pod.is_out
        pod.pass_time(2.0)
        assert (pod.is_out, pod.judge.uneject()) == (True, ())

    def test_it_may_be_refused_then(self) -> None:
        pod = Judged()
        pod.on_probation()
        for _ in range(3):
            pod.goes()
        pod.plane.fleet.share = 1.0
        pod.fails()
        pod.board.word = "capacity"
        pod.board.call()
        assert (pod.is_out, pod.board.tickets) == (False, {})

    def test_one_that_outlives_redis_is_over_when_it_is_over(self) -> None:
        pod = Judged()
        pod.ejected()
        pod.board.here = False
        pod.pass_time(31.0)
        for _ in range(3):
            assert pod.goes() == "engine"
        assert not pod.is_out
        pod.pass_time(60.0)
        pod.board.here = True
        pod.pass_time(2.0)
        assert (pod.is_out, pod.judge.uneject(), pod.judge.granted) == (False, (), {})
