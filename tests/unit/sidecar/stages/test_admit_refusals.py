"""Who is refused, when it is told to return, and what becomes of it when it does."""


from tests.harness.wire import post
from tests.unit.sidecar.stages.gated import ACME, Gated, crowded, emptied, invited, reason, text, told


def test_who_would_come_too_late_is_told_at_once_and_when_there_will_be_room() -> None:
    pod = Gated()
    crowded(pod)
    answer = told(pod.ask("e"))
    assert (answer.status, answer.reason, answer[b"x-headgate-elsewhere"]) == (503, "overloaded", b"1")
    assert b"x-should-retry" not in answer
    wait_ms = int(answer[b"retry-after-ms"])
    assert 0 < wait_ms <= 60_000 * 1.2
    assert int(answer[b"retry-after"]) == -(-wait_ms // 1000), "whole seconds, rounded up"
    assert pod.counts[0] == 1
    assert pod.record.predicted_ms > 3000


def test_who_stops_waiting_before_there_is_room_is_told_not_to_come_back() -> None:
    pod = Gated()
    crowded(pod)
    answer = told(pod.ask("e", "standard", "x-request-timeout-ms: 1000"))
    assert (answer.reason, answer[b"x-should-retry"]) == ("overloaded", b"false")
    assert b"retry-after" not in answer
    assert b"retry-after-ms" not in answer


def test_nobody_is_invited_where_nothing_is_kept_for_returns() -> None:
    pod = Gated("max_in_flight: 1, invited: 0")
    crowded(pod)
    assert told(pod.ask("e"))[b"x-should-retry"] == b"false"


def test_while_nothing_is_known_of_the_engine_a_caller_may_try_again_for_a_while() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    began = pod.clock.now()
    answer = told(pod.ask("b"))
    while b"x-should-retry" not in answer:
        pod.advance(int(answer[b"retry-after-ms"]) / 1000)
        answer = told(pod.ask("b"))
        assert pod.clock.now() < began + 10, "the engine seems to be stuck"
    assert pod.clock.now() > began + 2


def test_invitations_are_for_one_after_the_other() -> None:
    pod = Gated()
    crowded(pod)
    waits = [invited(pod, user) for user in "efg"]
    assert waits == sorted(set(waits))


def test_nobody_is_invited_for_when_it_could_no_longer_be_served() -> None:
    """Its class waits for up to 3 s, and it leaves after 6."""
    pod = Gated()
    crowded(pod)
    leaves = "x-request-timeout-ms: 6000"
    waits = []
    while b"x-should-retry" not in (answer := told(pod.ask(f"e{len(waits)}", "standard", leaves))):
        waits.append(int(answer[b"retry-after-ms"]) / 1000)
        assert waits[-1] <= 3.0
    assert waits


def test_nobody_is_refused_for_a_guess() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 100")
    pod.ask("a")
    for _ in range(100):
        assert reason(pod.ask("b", prompt=text(2000))) == ""
    assert pod.counts == (1, 100)


def test_higher_classes_are_not_refused_for_the_work_of_lower_ones() -> None:
    pod = Gated()
    crowded(pod, cls="batch")
    assert reason(pod.ask("e", "standard", max_tokens=50)) == ""
    assert reason(pod.ask("p", "premium", max_tokens=50)) == ""
    assert reason(pod.ask("f", "batch", "x-request-timeout-ms: 3000")) == "overloaded"


# Coming back.


def test_who_was_invited_and_comes_in_time_goes_before_first_attempts() -> None:
    pod = Gated()
    crowded(pod)
    seconds = invited(pod, "back")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    pod.ask("first")
    pod.ask("back", "standard", "x-stainless-retry-count: 1")
    pod.finish()
    pod.finish()
    assert pod.asked[-3:] == ["now", "back", "first"]
    pod.finish()
    assert [record.invited for record in pod.receipts.last(3)] == [False, True, False]


def test_it_is_known_again_without_a_word_of_its_own() -> None:
    """Plain HTTP clients send the same bytes again, and no count."""
    pod = Gated()
    crowded(pod)
    seconds = invited(pod, "back")
    pod.advance(seconds)
    pod.ask("back")
    pod.finish()
    assert pod.asked[-1] == "back"


def test_who_comes_before_its_time_goes_behind_first_attempts() -> None:
    pod = Gated()
    crowded(pod)
    invited(pod, "another")
    assert invited(pod, "back") > 0.5
    emptied(pod)
    for user in ("now", "back", "first"):
        pod.ask(user)
    pod.finish()
    assert pod.asked[-1] == "first"


def test_who_was_told_not_to_come_goes_behind_first_attempts() -> None:
    pod = Gated()
    crowded(pod)
    assert told(pod.ask("back", "standard", "x-request-timeout-ms: 1000"))[b"x-should-retry"] == b"false"
    emptied(pod)
    pod.advance(1)
    for user in ("now", "back", "first"):
        pod.ask(user)
    pod.finish()
    assert pod.asked[-1] == "first"


def test_who_says_that_it_is_a_repeat_is_one() -> None:
    pod = Gated()
    pod.ask("a")
    pod.ask("repeat", "standard", "x-stainless-retry-count: 2")
    pod.client() >> post("/generate", b'{"user": "g"}', "x-priority: standard", "x-stainless-retry-count: 1")
    pod.ask("first")
    pod.finish()
    assert pod.asked == ["a", "first"]


def test_the_bytes_of_another_tenant_are_not_known_again() -> None:
    pod = Gated()
    crowded(pod)
    seconds = invited(pod, "same")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    pod.ask("same", "standard", ACME)
    pod.finish()
    pod.finish()
    assert [record.invited for record in pod.receipts.last(2)] == [False, False]


def test_an_invitation_counts_once() -> None:
    pod = Gated()
    crowded(pod)
    seconds = invited(pod, "back")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    for _ in range(2):
        pod.ask("back")
    for _ in range(3):
        pod.finish()
    assert [record.invited for record in pod.receipts.last(3)] == [False, True, False]


def test_who_is_back_may_wait_as_long_as_one_who_is_new() -> None:
    pod = Gated(more="trusted_proxies: [192.0.2.7]")
    crowded(pod)
    invited(pod, "another")
    seconds = invited(pod, "back")
    assert seconds > 1
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    client = pod.ask("back", "standard", f"x-request-start: t={pod.clock.wall() - seconds:.3f}")
    pod.advance(2.5)
    assert not client.has_news


def test_patience_counts_from_when_a_caller_first_asked() -> None:
    """So invitations cannot go on for ever while the engine is stuck."""
    pod = Gated("max_in_flight: 1, invited: 0.5")
    crowded(pod)
    began = pod.clock.now()
    answer = told(pod.ask("back"))
    while b"x-should-retry" not in answer:
        pod.advance(int(answer[b"retry-after-ms"]) / 1000)
        client = pod.ask("back")
        pod.advance(4)  # its queue time-out
        answer = told(client)
        assert pod.clock.now() < began + 90
    assert pod.clock.now() > began + 20, "it was worth a try or two"
