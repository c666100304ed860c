"""Where the next attempt goes when one came to nothing, and when there is none."""

from typing import Any

import pytest

from sidecar.balance.fleet import Peer
from sidecar.errors import CONNECT_FAILED, FIRST_TOKEN_TIMEOUT, UPSTREAM_PROTOCOL, UPSTREAM_RESET
from sidecar.exchange import DONE, FORWARDED
from tests.unit.sidecar.stages.picking import AT_ONCE, COST, Rig

pytestmark = pytest.mark.interpreted  # its rig is a stage of the test's own


class TestRetries:
    @pytest.mark.parametrize(
        "how",
        [CONNECT_FAILED, UPSTREAM_RESET, UPSTREAM_PROTOCOL, FIRST_TOKEN_TIMEOUT],
        ids=lambda refusal: refusal.reason,
    )
    def test_what_failed_before_its_first_token_is_tried_on_another_pod(self, how: Any) -> None:
        rig = Rig()
        x = rig.ask_with()
        rig.fails(x, how)
        assert rig.places(x) == (rig.peers[0], 2)
        assert (x.state, x.away, x.tried) == (FORWARDED, True, (rig.own,))
        assert (rig.own.in_flight, rig.peers[0].in_flight) == (0, 1)
        assert rig.own.blocked_until > 0 or how not in (CONNECT_FAILED, UPSTREAM_RESET)
        assert rig.attempts == {("engine", how.reason): 1}

    def test_each_pod_is_tried_once_and_so_often_at_most(self) -> None:
        rig = Rig(peers=3)
        x = rig.ask_with()
        seen = [x.endpoint]
        while x.state == FORWARDED:
            rig.fails(x)
            seen.append(x.endpoint)
        assert len(set(seen[:3])) == 3
        assert (x.attempt, rig.reason(x)) == (3, "upstream_reset")
        assert rig.attempts == {("engine", "upstream_reset"): 1, ("peer", "upstream_reset"): 2}
        rig.assert_at_rest()

    @pytest.mark.parametrize("config", ["retry: {mode: 'off'}", "retry: {max_retries: 0}"])
    def test_none_may_be_wanted(self, config: str) -> None:
        rig = Rig(config)
        x = rig.ask_with()
        rig.fails(x)
        assert (x.attempt, rig.reason(x)) == (1, "upstream_reset")

    @pytest.mark.parametrize(
        ("found", "sent", "method"),
        [
            ({"hop": 1}, b"{}", "POST"),
            ({"body": None}, b"{}", "POST"),
            ({"body": None}, b"{}", "GET"),
            ({"body": None}, b"", "POST"),
            ({"responded": 1.0}, b"{}", "POST"),
            ({"model": "unknown there"}, b"{}", "POST"),
        ],
        ids=["it came over", "streamed through", "streamed GET", "not safe", "begun", "nobody has it"],
    )
    def test_what_cannot_be_tried_again(self, found: dict[str, Any], sent: bytes, method: str) -> None:
        rig = Rig()
        for one in rig.peers:
            one.models = frozenset({"a"})
        x = rig.ask_with(method=method, sent=sent, **found)
        rig.fails(x)
        assert (x.attempt, rig.reason(x)) == (1, "upstream_reset")
        rig.assert_at_rest()

    def test_what_is_safe_needs_no_body(self) -> None:
        rig = Rig()
        x = rig.ask_with(method="GET", sent=b"")
        x.body = None
        rig.fails(x)
        assert x.attempt == 2

    def test_without_a_peer_there_is_no_retry(self) -> None:
        rig = Rig(peers=0)
        x = rig.ask_with()
        rig.fails(x)
        assert (x.attempt, rig.reason(x)) == (1, "upstream_reset")
        assert rig.own.blocked_until > rig.clock.now()

    def test_nothing_is_tried_after_its_deadline(self) -> None:
        rig = Rig()
        x = rig.ask_with(deadline=rig.clock.now() + 1)
        rig.clock.advance(1.0)
        rig.fails(x)
        assert (x.attempt, rig.reason(x)) == (1, "upstream_reset")

    @pytest.mark.parametrize(
        ("status", "again"), [(500, True), (502, True), (504, True), (501, False), (429, False)]
    )
    def test_answers_of_the_engine(self, status: int, again: bool) -> None:
        rig = Rig()
        x = rig.ask_with()
        assert rig.answers_with(x, status) is again
        assert x.attempt == 1 + again
        assert rig.own.blocked_until == 0, "it answers"

    def test_which_answers_can_be_chosen(self) -> None:
        rig = Rig("retry: {base_ms: 1, statuses: [529]}")
        assert rig.answers_with(rig.ask_with(), 529)
        assert not rig.answers_with(rig.ask_with(), 503)

    @pytest.mark.parametrize(
        ("status", "reason", "again"),
        [
            (503, b"overloaded", True),
            (429, b"overloaded", True),
            (503, b"queue_full", True),
            (503, b"queue_timeout", True),
            (503, b"no_endpoint", True),
            (503, b"draining", True),
            (503, b"preempted", False),
            (504, b"timeout", False),
            (502, b"", True),
            (429, b"", False),
        ],
    )
    def test_refusals_of_a_peer_say_whether_another_may_do_better(
        self, status: int, reason: bytes, again: bool
    ) -> None:
        rig = Rig()
        x = rig.ask_with(away=True)
        assert isinstance(x.endpoint, Peer)
        assert rig.answers_with(x, status, reason) is again
        assert x.attempt == 1 + again

    def test_the_engines_own_word_is_none_of_a_peer(self) -> None:
        rig = Rig()
        assert rig.answers_with(rig.ask_with(), 503, b"preempted")

    def test_there_is_a_pause_before_it(self) -> None:
        rig = Rig("retry: {base_ms: 500, max_ms: 800}", peers=3)
        x = rig.ask_with()
        rig.fails(x)
        assert (x.state, x.attempt) == (FORWARDED, 1)
        rig.pass_time(0.375)
        assert x.attempt == 1
        rig.pass_time(0.25)
        assert rig.places(x) == (rig.peers[0], 2)
        rig.fails(x)
        rig.pass_time(0.75)
        assert x.attempt == 2, "twice as long, but for its longest"
        rig.pass_time(0.25)
        assert x.attempt == 3

    def test_who_leaves_meanwhile_is_not_sent(self) -> None:
        rig = Rig("retry: {base_ms: 500}")
        x = rig.ask_with()
        rig.fails(x)
        x.pipeline.complete(x)
        rig.pass_time(1.0)
        assert (x.state, x.attempt) == (DONE, 1)
        rig.assert_at_rest()

    def test_who_was_sent_back_meanwhile_is_not_sent_twice(self) -> None:
        rig = Rig("retry: {base_ms: 500}", peers=3)
        x = rig.ask_with()
        rig.fails(x)
        x.pipeline.retry(x)  # more important work took its place, say
        rig.pass_time(1.0)
        assert x.attempt == 2

    def test_what_the_attempt_left_behind_is_forgotten(self) -> None:
        rig = Rig()
        x = rig.ask_with()
        x.tokens, x.tail, x.status, x.on_trial = 5, b'"usage"', 503, True
        rig.fails(x)
        assert (x.tokens, x.tail, x.status, x.on_trial, x.failure) == (0, b"", 0, False, "")


class TestBudget:
    def test_beyond_it_the_first_failure_is_the_answer(self) -> None:
        rig = Rig()
        xs = [rig.ask_with() for _ in range(20)]  # 10 % of 20, and a reserve of 10
        for x in xs:
            rig.fails(x, FIRST_TOKEN_TIMEOUT)
        assert sum(x.attempt == 2 for x in xs) == 12
        assert [rig.reason(x) for x in xs if x.state == DONE] == ["first_token_timeout"] * 8
        assert rig.budget.refused == 8
        assert rig.budget.take() == (20 * COST, 12 * COST)

    def test_what_must_move_does_so_all_the_same_and_is_owed(self) -> None:
        rig = Rig()
        xs = [rig.ask_with() for _ in range(20)]
        rig.own.healthy = False
        for x in xs:
            rig.fails(x)
        assert all(x.attempt == 2 for x in xs)
        assert rig.budget.take() == (20 * COST, 20 * COST)
        rig.fails(xs[0])
        assert rig.reason(xs[0]) == "upstream_reset", "the next one is a matter of choice, and there is debt"

    def test_so_many_at_once(self) -> None:
        rig = Rig(f"engine: {{address: '127.0.0.1:8000', max_retries: 2}}\n{AT_ONCE}")
        xs = [rig.ask_with() for _ in range(4)]
        for x in xs:
            rig.fails(x)
        assert [x.attempt for x in xs] == [2, 2, 1, 1]
        xs[0].pipeline.complete(xs[0])
        x = rig.ask_with(away=True)
        rig.fails(x, FIRST_TOKEN_TIMEOUT)
        assert x.attempt == 2
