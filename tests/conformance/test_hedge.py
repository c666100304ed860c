"""Two pods are asked where a first token is late: callers get one answer, and the loser's work ends."""

from typing import Final

import pytest

from tests.conformance.test_mesh import DONE, OWN, ROLE, SSE, STREAM, Pod, token
from tests.harness.engine import End, answer, chunked

ON: Final = "retry: {hedge: on, base_ms: 1}\nadmission: {max_in_flight: 8}"
PEER: Final = "10.0.0.1:80"
USUAL: Final = 30  # first tokens, at once: enough to know what is late


class Hedging(Pod):
    """A pod whose engine answers at once, so far."""

    def __init__(self, config: str = ON) -> None:
        super().__init__(config)
        for _ in range(USUAL):
            self.ask()
            self.own >> SSE + chunked(token("a"), DONE)
        self.advance(0.25)

    def late(self) -> None:
        """Longer than first tokens have ever taken."""
        self.advance(1.0)


@pytest.fixture
def pod() -> Hedging:
    return Hedging()


def test_in_time_one_is_asked(pod: Hedging) -> None:
    client = pod.ask()
    pod.own >> SSE + chunked(ROLE, token("Hi"), DONE)
    pod.late()
    assert client.answer(b"POST").body == ROLE + token("Hi") + DONE
    assert PEER not in pod.went
    pod.assert_at_rest()


def test_the_second_is_faster(pod: Hedging) -> None:
    client = pod.ask()
    first = pod.own
    first >> SSE + chunked(ROLE, last=False)
    pod.late()
    assert pod.peer.request().body == STREAM
    assert pod.gate.in_flight == 1
    pod.peer >> SSE + chunked(ROLE, token("Hi"), last=False)
    assert first.aborted, "its engine is to stop"
    assert pod.gate.in_flight == 0, "it takes no place here any more"
    pod.peer >> chunked(token("you"), DONE)
    told = client.answer(b"POST")
    assert (told.complete, told.body) == (True, ROLE + token("Hi") + token("you") + DONE)
    assert (pod.record.endpoint, pod.record.attempts, pod.record.tried) == (PEER, 2, f"{OWN} outrun")
    assert pod.attempts["engine", "outrun"] == pod.attempts["peer", "ok"] == 1
    pod.assert_at_rest()


def test_the_second_is_whole_at_once(pod: Hedging) -> None:
    client = pod.ask()
    pod.late()
    pod.peer >> SSE + chunked(token("Hi"), DONE)
    assert client.answer(b"POST").complete
    pod.assert_at_rest()


def test_the_first_is_faster_after_all(pod: Hedging) -> None:
    client = pod.ask()
    pod.late()
    assert PEER in pod.went
    pod.own >> SSE + chunked(token("Hi"), last=False)
    assert pod.peer.aborted
    pod.own >> chunked(DONE)
    assert client.answer(b"POST").body == token("Hi") + DONE
    assert (pod.record.endpoint, pod.record.attempts) == (OWN, 1)
    pod.assert_at_rest()


@pytest.mark.parametrize("first", [True, False])
def test_one_fails_and_the_other_goes_on(pod: Hedging, first: bool) -> None:
    client = pod.ask()
    pod.late()
    fails, goes_on = (pod.own, pod.peer) if first else (pod.peer, pod.own)
    fails >> answer(b"500 No", b"no", b"content-length: 2")
    assert not client.has_news
    goes_on >> SSE + chunked(token("Hi"), DONE)
    assert client.answer(b"POST").body == token("Hi") + DONE
    assert len(set(pod.went)) == 2
    pod.assert_at_rest()


def test_both_fail(pod: Hedging) -> None:
    client = pod.ask()
    pod.late()
    pod.own >> End.RESET
    assert not client.has_news
    pod.peer >> End.RESET
    assert client.answer(b"POST").reason == "upstream_reset"
    pod.assert_at_rest()


def test_the_caller_leaves_both(pod: Hedging) -> None:
    client = pod.ask()
    pod.late()
    client >> End.RESET
    assert (pod.own.aborted, pod.peer.aborted) == (True, True)
    pod.assert_at_rest()


def test_the_callers_time_is_over(pod: Hedging) -> None:
    client = pod.ask(STREAM, "x-request-timeout-ms: 3000")
    pod.late()
    assert PEER in pod.went
    pod.advance(3.0)
    assert client.answer(b"POST").reason == "timeout"
    assert (pod.own.aborted, pod.peer.aborted) == (True, True)
    pod.assert_at_rest()


@pytest.mark.parametrize("utilization", [0.99, 1.0])
def test_only_who_has_room_is_asked(pod: Hedging, utilization: float) -> None:
    pod.hears(1, utilization=utilization)
    pod.ask()
    pod.late()
    assert (PEER in pod.went) == (utilization < 1)


def test_the_budget_is_that_of_retries() -> None:
    pod = Hedging(ON.replace("hedge: on", "hedge: on, budget: 0"))
    pod.plane.retries.hear(1.0, 1.0)  # the mesh tries too much again
    pod.ask()
    pod.late()
    assert PEER not in pod.went


def test_off_nobody_is_asked_twice() -> None:
    pod = Hedging(ON.replace("hedge: on", "hedge: off"))
    pod.ask()
    pod.late()
    assert PEER not in pod.went
