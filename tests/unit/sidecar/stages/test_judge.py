"""What is held against the engine beside us, who is asked, and what an ejection does."""

from collections.abc import Callable

import pytest

from sidecar.balance.blackboard import Vote
from sidecar.balance.heartbeat import Heartbeat
from sidecar.balance.outlier import Why
from sidecar.plane import ENGINE, POD
from tests.harness.engine import End, answer, chunked
from tests.unit.sidecar.stages.judging import CLOSE, EVENTS, NO, STREAM, TOKEN, Judged

NOTHING, SUCCESS, FAILURE, OF_LOCAL_ORIGIN = (1, 0), (0, 0), (2, 0), (2, 1)  # after one failure


def refuses(status: int, *fields: bytes) -> Callable[[Judged], None]:
    def end(pod: Judged) -> None:
        pod.ask()
        pod.engine >> answer(b"%d No" % status, b"no", b"content-length: 2", CLOSE, *fields)

    return end


def sends(*events: bytes | End) -> Callable[[Judged], None]:
    def end(pod: Judged) -> None:
        pod.ask(STREAM)
        for event in events:
            pod.engine >> event

    return end


def is_never_there(pod: Judged) -> None:
    pod.dialer.refused = True
    pod.ask()


def is_silent(pod: Judged) -> None:
    pod.ask(STREAM)
    pod.advance(25.0)


def is_late(pod: Judged) -> None:
    pod.ask(STREAM, "x-request-timeout-ms: 2000")
    pod.advance(5.0)


def stalls(pod: Judged) -> None:
    sends(EVENTS + chunked(TOKEN, last=False))(pod)
    pod.advance(4.0)


def leaves(pod: Judged) -> None:
    pod.ask(STREAM) >> End.RESET


def leaves_in_the_middle(pod: Judged) -> None:
    client = pod.ask(STREAM)
    pod.engine >> EVENTS + chunked(TOKEN, last=False)
    client >> End.RESET


ENDINGS = {
    "a whole answer": (sends(EVENTS + chunked(TOKEN)), SUCCESS),
    "404": (refuses(404), NOTHING),
    "500": (refuses(500), FAILURE),
    "503": (refuses(503), FAILURE),
    "429": (refuses(429), NOTHING),
    "503, when to return": (refuses(503, b"retry-after: 1"), NOTHING),
    "503 of a sidecar": (refuses(503, b"x-headgate-reason: overloaded"), NOTHING),
    "503 of Envoy": (refuses(503, b"x-envoy-overloaded: true"), NOTHING),
    "529, when to return": (refuses(529, b"retry-after: 1"), NOTHING),
    "500, when to return": (refuses(500, b"retry-after: 1"), FAILURE),
    "a refused connection": (is_never_there, OF_LOCAL_ORIGIN),
    "a reset": (sends(End.RESET), OF_LOCAL_ORIGIN),
    "nonsense": (sends(b"220 smtp.example ESMTP\r\n"), OF_LOCAL_ORIGIN),
    "silence": (is_silent, OF_LOCAL_ORIGIN),
    "no token": (sends(EVENTS + chunked()), FAILURE),
    "a broken answer": (sends(EVENTS + chunked(TOKEN, last=False), End.RESET), FAILURE),
    "no further token": (stalls, FAILURE),
    "its caller's deadline": (is_late, NOTHING),
    "its caller left": (leaves, NOTHING),
    "its caller left in the middle": (leaves_in_the_middle, NOTHING),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_each_ending_says_what_it_says(how: str) -> None:
    ends, expected = ENDINGS[how]
    pod = Judged()
    pod.configure(
        "outlier: {interval_s: 600}\nretry: {mode: 'off'}\ntimeouts: {first_byte_s: 20, stall_s: 3}"
    )
    pod.fails(1)
    ends(pod)
    runs = pod.host.runs
    assert (runs.get(Why.FIVE_XX, 0), runs.get(Why.LOCAL, 0)) == expected
    pod.assert_at_rest()


def test_a_failure_is_no_quick_answer() -> None:
    pod = Judged()
    pod.fails(1)
    assert pod.plane.endpoint.expected_s(pod.clock.now()) == 5.0


class TestAsking:
    def test_five_failures_in_a_row_are_a_vote_that_stands_alone(self) -> None:
        pod = Judged()
        pod.fails(4)
        assert pod.judge.votes() == ()
        pod.fails(1)
        assert pod.judge.votes() == (Vote("pod-0", "consecutive_5xx", True, 1, 65_000),)
        assert not pod.is_out, "nobody has decided"
        pod.board.call()
        assert pod.judge.votes() == ()

    def test_what_the_mesh_grants_is_done_at_once(self) -> None:
        pod = Judged()
        assert (pod.goes(), pod.plane.state()) == ("engine", "serving")
        pod.ejected()
        assert pod.plane.state() == "ejected"
        assert pod.plane.services() == {POD: False, ENGINE: True}
        assert pod.goes() == "peer"
        assert pod.judge.until == pod.clock.now() + 30.0

    def test_plane_tells_that_its_state_has_changed(self) -> None:
        pod = Judged()
        told: list[str] = []
        pod.plane.changed = lambda: told.append(pod.plane.state())
        pod.ejected()
        pod.advance(0.25)
        assert told == ["ejected"]

    @pytest.mark.parametrize("word", ["cap", "capacity", "systemic", "absent"])
    def test_what_it_refuses_is_not_done_and_is_counted(self, word: str) -> None:
        pod = Judged()
        pod.board.word = word
        pod.fails()
        pod.pass_time(5.0)
        assert (pod.is_out, pod.judge.outliers.overflow, pod.goes()) == (False, 1, "engine")
        assert pod.board.asked == ["pod-0"], "it is asked again for a new reason alone"
        pod.fails()
        assert len(pod.judge.votes()) == 1

    @pytest.mark.parametrize("settled", [True, False])
    def test_a_ticket_that_is_there_already_is_as_good(self, settled: bool) -> None:
        pod = Judged()
        pod.fails()
        pod.board.settled = settled
        pod.board.ejects("pod-0", 60.0, "pod-1")
        pod.board.call()
        assert pod.is_out

    def test_failures_of_a_peer_are_one_vote_among_several(self) -> None:
        pod = Judged(peers=3)
        pod.plane.fleet.own.healthy = False
        for n in (2, 3):
            pod.hears(n, "down")
        pod.board.word = "votes"
        pod.fails()
        assert pod.judge.votes() == (Vote("pod-1", "consecutive_5xx", False, 3, 65_000),)
        pod.board.call()
        assert (pod.judge.votes(), pod.judge.outliers.overflow) == ((), 0), "it is said, and was no refusal"

    def test_a_peer_that_the_mesh_has_ejected_gets_nothing(self) -> None:
        pod = Judged(peers=1)
        pod.plane.fleet.own.healthy = False
        pod.board.ejects("pod-1", 30.0)
        pod.board.here = False
        pod.judge.hear_ejected(pod.board.ejected)
        assert pod.ask().answer(b"POST").reason == "no_endpoint"
        pod.pass_time(31.0)
        assert pod.goes() == "peer", "though nobody has said that it is over"

    @pytest.mark.parametrize(("mode", "suspicions"), [("'off'", 0), ("shadow", 1)])
    def test_modes_that_do_nothing(self, mode: str, suspicions: int) -> None:
        pod = Judged(f"mode: {mode}")
        pod.fails()
        pod.board.ejects("pod-1", 30.0)
        pod.board.ejects("pod-0", 30.0, "pod-1")
        pod.pass_time(2.0)
        assert sum(pod.judge.outliers.detected.values()) == suspicions
        assert (pod.is_out, pod.board.asked, pod.judge.uneject()) == (False, [], ())
        assert (pod.plane.fleet.share, pod.goes()) == (1.0, "engine")
        assert not pod.plane.fleet.peers["pod-1"].ejected

    def test_where_there_is_nobody_else_nobody_is_asked(self) -> None:
        pod = Judged(peers=0)
        pod.fails()
        assert (pod.judge.votes(), pod.goes()) == ((), "engine")

    def test_what_is_not_enforced_is_not_asked(self) -> None:
        pod = Judged()
        pod.chance = 0.5
        pod.reload("enforcing_consecutive_5xx: 50")
        pod.fails()
        assert pod.judge.votes() == ()
        pod.chance = 0.4
        pod.fails()
        assert len(pod.judge.votes()) == 1


class TestAlone:
    """Redis is away."""

    def test_the_local_cap_decides(self) -> None:
        pod = Judged()
        pod.board.here = False
        pod.fails()
        assert (pod.is_out, pod.goes(), pod.plane.state()) == (True, "peer", "ejected")
        pod.board.here = True
        pod.pass_time(3.0)
        assert pod.is_out, "there never was a ticket that could be gone"
        assert pod.judge.uneject() == ()

    def test_places_that_others_have_are_taken(self) -> None:
        pod = Judged()
        pod.board.here = False
        pod.hears(1, "ejected")
        pod.fails()
        assert not pod.is_out
        assert pod.plane.fleet.share == 0.25

    def test_one_decides_after_the_other(self) -> None:
        first, second = Judged(), Judged(name="pod-7")  # two peers are before it
        for pod in (first, second):
            pod.board.here = False
            pod.fails()
        assert (first.is_out, second.is_out, second.plane.fleet.share) == (True, False, 0.25)
        second.pass_time(4.0)
        assert not second.is_out
        second.pass_time(2.0)
        assert second.is_out, "nobody was ejected meanwhile"
        third = Judged(name="pod-7")
        third.board.here = False
        third.fails()
        third.pass_time(1.0)
        third.hears(1, "ejected")
        third.pass_time(5.0)
        assert not third.is_out

    def test_beyond_it_the_engine_gets_less_for_ten_seconds(self) -> None:
        pod = Judged(peers=1)  # of two nobody is ejected
        pod.board.here = False
        pod.fails()
        assert (pod.is_out, pod.plane.fleet.share) == (False, 0.25)
        pod.chance = 0.3
        assert pod.goes() == "peer"
        pod.chance = 0.2
        assert pod.goes() == "engine"
        pod.chance = 0.3
        pod.hears(1, utilization=1.0)
        assert pod.goes() == "engine", "the peer has no room"
        pod.plane.fleet.keep([])
        assert pod.goes() == "engine", "there is no peer"
        pod.hears(1)
        pod.pass_time(8.0)
        assert pod.goes() == "peer"
        pod.pass_time(3.0)
        assert (pod.goes(), pod.plane.fleet.share) == ("engine", 1.0)

    def test_its_share_is_drawn_once(self) -> None:
        pod = Judged(peers=1)
        pod.board.here = False
        pod.fails()
        draws = iter([0.2, 0.9, 0.9])
        pod.clock.jitter = lambda value, share: value * (1 + share * next(draws))  # type: ignore[method-assign]
        assert pod.goes() == "engine"

    def test_who_asked_a_blackboard_that_does_not_answer_decides_alone(self) -> None:
        pod = Judged()
        pod.fails()
        pod.board.here = False
        pod.judge.asks = lambda: True
        pod.pass_time(3.0)
        assert not pod.is_out
        pod.pass_time(1.0)
        assert pod.is_out
        assert [vote.pod for vote in pod.judge.votes()] == ["pod-0"], "from now on it counts"

    @pytest.mark.parametrize(("word", "stays"), [("granted", True), ("cap", False)])
    def test_when_the_blackboard_is_back_it_is_asked(self, word: str, stays: bool) -> None:
        pod = Judged()
        pod.board.here = False
        pod.fails()
        assert pod.is_out
        pod.board.here, pod.board.word = True, word
        pod.pass_time(2.0)
        assert (pod.is_out, "pod-0" in pod.board.tickets) == (stays, stays)


class TestPanic:
    def test_while_few_are_well_ejections_are_ignored(self) -> None:
        pod = Judged(peers=3)
        pod.ejected()
        pod.board.ejects("pod-1", 60.0)
        pod.board.call()
        assert pod.is_out, "two of four are well"
        pod.hears(2, "down")
        pod.pass_time(1.0)
        assert not pod.is_out
        assert pod.plane.state() == "serving"
        assert pod.plane.fleet.peer("other", (), pod.clock.now()) is pod.plane.fleet.peers["pod-1"]
        pod.hears(2)
        pod.pass_time(1.0)
        assert pod.is_out
        assert pod.plane.fleet.peers["pod-1"].ejected

    def test_it_may_be_switched_off(self) -> None:
        pod = Judged("panic_threshold_percent: 0", peers=3)
        pod.ejected()
        for n in (1, 2, 3):
            pod.hears(n, "down")
        pod.pass_time(1.0)
        assert pod.is_out

    def test_the_last_one_is_never_ejected(self) -> None:
        pod = Judged("panic_threshold_percent: 0")
        pod.ejected()
        pod.plane.fleet.keep([])
        pod.pass_time(1.0)
        assert pod.goes() == "engine"


class TestReload:
    @pytest.mark.parametrize("outlier", ["mode: 'off'", "mode: shadow", "consecutive_5xx: 7"])
    def test_it_forgets_who_is_ejected(self, outlier: str) -> None:
        pod = Judged()
        pod.ejected()
        pod.reload(outlier)
        assert (pod.is_out, pod.goes(), pod.judge.until) == (False, "engine", 0.0)
        assert pod.judge.uneject() == ("pod-0",)
        pod.pass_time(2.0)
        assert pod.board.tickets == {}
        assert (pod.is_out, pod.judge.uneject()) == (False, ())

    def test_what_does_not_change_it_changes_nothing(self) -> None:
        pod = Judged()
        pod.ejected()
        pod.reload("")
        assert pod.is_out

    def test_another_engine_has_done_nothing(self) -> None:
        pod = Judged()
        client = pod.ask()
        old = pod.engine
        pod.ejected()
        pod.engine_is("127.0.0.1:8001")
        pod.pass_time(2.0)
        assert not pod.is_out
        assert (pod.board.tickets, pod.host.runs) == ({}, {})
        old >> NO
        assert client.answer(b"POST").status == 500
        assert pod.host.runs == {}, "that was the old one's"

    def test_it_knows_at_once_who_else_there_is(self) -> None:
        pod = Judged()
        pod.board.here = False
        pod.reload("interval_s: 20")
        pod.fails()
        assert pod.is_out

    def test_a_question_of_before_is_withdrawn(self) -> None:
        pod = Judged()
        pod.fails()
        pod.reload("consecutive_5xx: 7")
        assert pod.judge.votes() == ()


def test_who_is_down_is_no_suspect_and_its_ejection_ends() -> None:
    pod = Judged()
    pod.ejected()
    pod.plane.endpoint.healthy = False
    pod.pass_time(1.0)
    assert (pod.is_out, pod.plane.state(), pod.judge.until) == (False, "down", 0.0)
    pod.pass_time(1.0)
    assert pod.board.tickets == {}
    pod.fails(5)  # a peer
    assert all(vote.pod != "pod-0" for vote in pod.judge.votes())
    pod.plane.endpoint.healthy = True
    pod.pass_time(1.0)
    assert pod.plane.fleet.share == 0.1, "it begins slowly"


@pytest.mark.parametrize(("mode", "share"), [("'on'", 0.1), ("'off'", 1.0), ("shadow", 1.0)])
def test_who_was_down_begins_slowly_where_that_is_wanted(mode: str, share: float) -> None:
    pod = Judged(f"mode: {mode}")
    for healthy in (False, True):
        pod.plane.endpoint.healthy = healthy
        pod.pass_time(1.0)
    assert pod.plane.fleet.share == share


def test_a_hung_one_takes_no_ticket() -> None:
    pod = Judged()
    pod.plane.endpoint.healthy = False
    pod.pass_time(1.0)
    pod.board.ejects("pod-0", 60.0, "pod-1")
    pod.board.call()
    assert pod.judge.until == 0.0
    assert pod.judge.uneject() == ("pod-0",)


def test_slowness() -> None:
    pod = Judged()

    def window(seconds: float, model: str = "", state: str = "serving") -> None:
        for n in (1, 2):
            models = (model,) if model else tuple(pod.catalog.labels())
            pod.hears(n, state, pace=(9, 0.0001, 0, 0.0), models=models)
        pod.plane.fleet.models = frozenset(pod.catalog.labels())
        pod.first_tokens(seconds)
        pod.pass_time(1.0 - seconds)

    for _ in range(2):
        window(0.5)
    window(0.25, state="down")
    for _ in range(4):
        window(0.5, model="another")
    assert pod.board.asked == [], "there is nothing to compare with"
    for _ in range(2):
        window(0.5)
    assert pod.board.asked == []
    window(0.5)
    assert pod.board.asked == ["pod-0"]
    assert pod.board.tickets["pod-0"][1] == "slow_first_token"
    assert pod.is_out


def test_a_pace_is_as_old_as_it_is() -> None:
    pod = Judged()
    for n in (1, 2):
        pod.hears(n, pace=(9, 0.0001, 0, 0.0))
    now = pod.clock.now()
    assert len(pod.judge._peers_paces(now + 2.5)) == 2
    assert pod.judge._peers_paces(now + 2.75) == []
    pod.plane.fleet.forget("pod-1")
    assert len(pod.judge._peers_paces(now)) == 1


def test_old_words_do_not_replace_newer_ones() -> None:
    pod = Judged()
    now = pod.clock.now()
    for at, start in ((now, 0.1), (now - 1.0, 0.2)):
        pod.judge.hear(Heartbeat("pod-1", "10.0.0.1:80", "serving", pace=(9, start, 0, 0.0)), at)
    assert [pace.start for pace in pod.judge._peers_paces(now) if pace.starts] == [0.1]
