"""Where an attempt goes, what is learnt of it, and when an engine is taken to hang."""

from typing import Any

import pytest

from sidecar.balance.fleet import Peer
from sidecar.errors import STALLED
from sidecar.exchange import DONE, FORWARDED
from tests.unit.sidecar.stages.picking import AT_ONCE, COST, HANGS, Carrier, Rig, down

pytestmark = pytest.mark.interpreted  # its rig is a stage of the test's own


class TestWhere:
    def test_the_engine_beside_us_takes_all_that_it_can(self) -> None:
        rig = Rig()
        xs = [rig.ask_with() for _ in range(3)]
        assert [x.endpoint for x in xs] == [rig.own] * 3
        assert list(rig.own.carried) == xs == rig.forwarded
        assert xs[0].dispatched == rig.clock.now()
        assert rig.budget.take() == (3 * COST, 0.0)

    @pytest.mark.parametrize("how", ["healthy", "hung", "ejected", "blocked"])
    def test_while_it_is_down_a_peer_does(self, how: str) -> None:
        rig = Rig()
        down(rig, how)
        x = rig.ask_with()
        assert isinstance(x.endpoint, Peer)
        assert x.endpoint.sent == 1
        assert rig.own.in_flight == 0

    @pytest.mark.parametrize("how", ["healthy", "hung", "ejected"])
    @pytest.mark.parametrize(("peers", "found"), [(0, {}), (2, {"hop": 1}), (2, {"model": "unknown there"})])
    def test_where_nobody_takes_it_the_caller_may_return(
        self, how: str, peers: int, found: dict[str, Any]
    ) -> None:
        rig = Rig(peers=peers)
        for one in rig.peers:
            one.models = frozenset({"a"})
        down(rig, how)
        x = rig.ask_with(**found)
        assert (rig.reason(x), rig.answers[x].retry_after_s) == ("no_endpoint", 6.0)
        assert (x.state, x.endpoint, rig.attempts) == (DONE, None, {})

    @pytest.mark.parametrize(("peers", "hop"), [(0, 0), (2, 1)])
    def test_a_blocked_one_is_asked_where_there_is_no_other(self, peers: int, hop: int) -> None:
        rig = Rig(peers=peers)
        down(rig, "blocked")
        assert rig.ask_with(hop=hop).endpoint is rig.own

    def test_what_is_for_a_peer_goes_there_though_the_engine_is_well(self) -> None:
        rig = Rig()
        assert isinstance(rig.ask_with(away=True).endpoint, Peer)
        rig.fleet.keep([])
        assert rig.reason(rig.ask_with(away=True)) == "no_endpoint"

    def test_a_trial_goes_to_the_engine_that_is_down(self) -> None:
        rig = Rig()
        down(rig, "hung")
        assert rig.ask_with(on_trial=True).endpoint is rig.own

    def test_an_endpoint_has_its_limit(self) -> None:
        rig = Rig()
        rig.own.max_requests = 1
        first, second = rig.ask_with(), rig.ask_with()
        assert (first.state, rig.reason(second)) == (FORWARDED, "overloaded")
        assert rig.own.in_flight == 1

    @pytest.mark.parametrize(("left", "reason"), [(0.0, "timeout"), (-1.0, "timeout"), (0.1, "")])
    def test_what_nobody_waits_for_goes_nowhere(self, left: float, reason: str) -> None:
        rig = Rig()
        x = rig.ask_with(deadline=rig.clock.now() + left)
        assert rig.reason(x) == reason

    def test_what_was_taken_is_given_back_once(self) -> None:
        rig = Rig()
        x = rig.ask_with()
        rig.own.healthy = False
        x.pipeline.complete(x)
        x.pipeline.complete(x)
        rig.assert_at_rest()
        assert x.endpoint is rig.own, "the record names it"


class TestWhatIsLearnt:
    def test_an_answer_ends_the_block(self) -> None:
        rig = Rig(peers=0)
        down(rig, "blocked")
        x = rig.ask_with()
        rig.responds(x)
        assert rig.own.blocked_until == 0

    @pytest.mark.parametrize(
        ("found", "status", "known"), [({}, 200, True), ({}, 503, False), ({"stream": False}, 200, False)]
    )
    def test_how_long_first_tokens_take(self, found: dict[str, Any], status: int, known: bool) -> None:
        rig = Rig()
        for _ in range(20):
            x = rig.ask_with(**found)
            rig.clock.advance(0.25)
            x.status = status
            rig.responds(x)
        assert rig.first_tokens.quantile(0.5) == (0.25 if known else None)

    def test_how_soon_a_peer_answers(self) -> None:
        rig = Rig()
        x = rig.ask_with(away=True, stream=False)
        rig.clock.advance(0.75)
        x.status = 200
        rig.responds(x)
        assert x.endpoint is not None
        assert x.endpoint.expected_s(rig.clock.now()) == 0.75

    @pytest.mark.parametrize(
        ("status", "reason", "outcome"),
        [(200, "", "ok"), (404, "", "ok"), (503, "", "status"), (200, STALLED.reason, "stalled")],
    )
    def test_what_became_of_attempts_is_counted(self, status: int, reason: str, outcome: str) -> None:
        rig = Rig()
        for away in (False, True):
            x = rig.ask_with(away=away)
            x.status, x.reason = status, reason
            x.pipeline.complete(x)
        assert rig.attempts == {("engine", outcome): 1, ("peer", outcome): 1}


class TestHanging:
    """Ticks as the plane's."""

    def rig(self, peers: int = 2) -> Rig:
        """An engine that has worked before."""
        rig = Rig(HANGS + "\n" + AT_ONCE, peers)
        rig.own.moved += 1
        rig.pick.tick(0.0, 0.0)
        return rig

    def hang(self, rig: Rig, seconds: float = 5.25) -> None:
        for _ in range(round(seconds / 0.125)):
            rig.pass_time(0.125)
            rig.pick.tick(0.0, 0.0)

    def hang_while_counting(self, rig: Rig, made: int | None) -> None:
        rig.own.load.generated_total = made
        for _ in range(50):
            rig.own.load.counted_at = rig.clock.now()
            self.hang(rig, 0.125)

    @pytest.mark.parametrize(
        ("rate", "size", "hangs_after"),
        [
            (1000.0, 7500, 10.0),  # 4 x 2500 tokens of three bytes at the least, at that rate
            (0.0, 3000, 20.0),  # nobody knows: it may be a CPU
        ],
    )
    def test_a_long_prompt_is_no_hang(self, rate: float, size: int, hangs_after: float) -> None:
        rig = Rig(HANGS + "\n" + AT_ONCE)
        rig.own.moved += 1
        rig.pick.tick(0.0, rate)
        rig.ask_with(size=size)
        rig.pick.tick(0.0, rate)
        rig.pass_time(hangs_after - 0.125)
        rig.pick.tick(0.0, rate)
        assert not rig.own.hung
        rig.pass_time(0.25)
        rig.pick.tick(0.0, rate)
        assert rig.own.hung

    def test_what_has_no_token_moves(self, caplog: pytest.LogCaptureFixture) -> None:
        rig = self.rig()
        waits, began = rig.ask_with(), rig.ask_with()
        carrier = waits.upstream
        rig.responds(began)
        self.hang(rig, 5.0)
        assert (rig.own.hung, waits.attempt) == (False, 1)
        self.hang(rig, 0.25)
        assert rig.own.hung
        assert rig.places(waits) == (rig.peers[0], 2)
        assert isinstance(carrier, Carrier)
        assert carrier.abandoned == 1
        assert rig.places(began) == (rig.own, 1), "its caller has a part of the answer"
        assert rig.attempts == {("engine", "moved"): 1}
        assert rig.budget.take()[1] == COST
        assert "hangs" in caplog.text

    def test_where_there_is_no_peer_callers_are_told(self) -> None:
        rig = self.rig(peers=0)
        x = rig.ask_with()
        self.hang(rig)
        assert rig.own.hung
        assert x not in rig.answers, "it may still come"
        self.hang(rig)
        assert (rig.reason(x), rig.answers[x].retry_after_s) == ("no_endpoint", 6.0)

    def test_what_a_peer_has_given_us_goes_no_further(self) -> None:
        rig = self.rig()
        x = rig.ask_with(hop=1)
        self.hang(rig)
        assert rig.reason(x) == "no_endpoint"

    @pytest.mark.parametrize("kind", ["token", "answer", "counter"])
    def test_any_progress_is_a_sign_of_life(self, kind: str) -> None:
        rig = self.rig()
        x = rig.ask_with()
        load = rig.own.load
        load.generated_total = 7
        for _ in range(4):
            load.counted_at = rig.clock.now()
            rig.pick.tick(0.0, 0.0)
            self.hang(rig, 4.0)
            if kind == "token":
                x.responded = rig.clock.now()
                x.tokens += 1
            elif kind == "answer":
                y = rig.ask_with()
                y.status = 200
                rig.responds(y)
                y.pipeline.complete(y)
            else:
                load.generated_total += 1
        assert not rig.own.hung

    def test_of_an_answer_that_comes_whole_nothing_is_seen(self) -> None:
        rig = self.rig()
        x = rig.ask_with(stream=False)
        self.hang(rig, 30.0)
        assert (rig.own.hung, x.attempt) == (False, 1)

    @pytest.mark.parametrize("tells", ["counters", "checks"])
    def test_unless_the_engine_tells_or_its_checks_fail_as_well(self, tells: str) -> None:
        rig = self.rig()
        x = rig.ask_with(stream=False)
        rig.own.healthy = tells != "checks"
        self.hang_while_counting(rig, made=7 if tells == "counters" else None)
        assert (rig.own.hung, x.attempt) == (True, 2)

    @pytest.mark.parametrize(
        ("made", "found"),
        [(None, {}), (7, {"answers": 0}), (7, {"body": None})],
        ids=["of what has ended alone", "no tokens", "a body that is not read"],
    )
    def test_no_counter_tells_of_it(self, made: int | None, found: dict[str, Any]) -> None:
        rig = self.rig()
        x = rig.ask_with(stream=False)
        for name, value in found.items():
            setattr(x, name, value)
        self.hang_while_counting(rig, made)
        assert (rig.own.hung, x.attempt) == (False, 1)

    def test_a_stream_without_events_moves_by_its_bytes(self) -> None:
        rig = self.rig()
        x = rig.ask_with()
        rig.responds(x)
        for _ in range(10):
            self.hang(rig, 4.0)
            x.bytes_out += 20
        assert not rig.own.hung
        self.hang(rig)
        assert rig.own.hung

    def test_what_its_caller_does_not_read_says_nothing(self) -> None:
        rig = self.rig()
        x = rig.ask_with()
        x.client.is_congested = True  # type: ignore[misc]
        self.hang(rig, 30.0)
        assert not rig.own.hung

    def test_what_is_no_work_stays(self) -> None:
        rig = self.rig()
        work, other = rig.ask_with(), rig.ask_with(is_work=False)
        self.hang(rig)
        assert (work.attempt, other.attempt, other.endpoint) == (2, 1, rig.own)

    def test_a_trial_has_its_time(self) -> None:
        rig = self.rig()
        rig.ask_with()
        self.hang(rig)
        x = rig.ask_with(on_trial=True)
        self.hang(rig, 4.875)
        assert rig.places(x) == (rig.own, 1)
        self.hang(rig, 0.25)
        assert rig.places(x) == (rig.peers[1], 2), "the first has one already"
        assert not x.on_trial

    def test_a_trial_that_goes_well_ends_it(self, caplog: pytest.LogCaptureFixture) -> None:
        rig = self.rig()
        rig.ask_with()
        self.hang(rig)
        caplog.set_level("WARNING")
        x = rig.ask_with(on_trial=True)
        x.responded = rig.clock.now()
        x.tokens = 1
        rig.pick.tick(0.0, 0.0)
        assert not rig.own.hung
        assert "moves again" in caplog.text
        assert rig.ask_with().endpoint is rig.own

    def test_an_engine_that_came_back_is_another(self) -> None:
        rig = self.rig()
        rig.ask_with()
        self.hang(rig)
        rig.own.healthy = False
        rig.pick.tick(0.0, 0.0)
        assert rig.own.hung
        rig.own.healthy = True
        rig.pick.tick(0.0, 0.0)
        assert not rig.own.hung

    def test_nobody_may_want_to_know(self) -> None:
        rig = Rig(HANGS.replace("kind", "progress: 'off', kind"))
        rig.own.moved += 1
        x = rig.ask_with()
        self.hang(rig, 30.0)
        assert (rig.own.hung, x.attempt) == (False, 1)
