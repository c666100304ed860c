"""Who runs, who waits and for how long."""

import pytest

from sidecar.exchange import Exchange
from sidecar.pipeline import Stage
from sidecar.stages.admit import Admit
from sidecar.stages.pick import Pick
from tests.harness.engine import End, ok
from tests.harness.wire import get, post
from tests.unit.sidecar.stages.gated import ACME, Gated, reason, text, told

# Who runs, who waits.


def test_work_runs_up_to_the_limit_and_waits_beyond_it_in_order() -> None:
    pod = Gated("max_in_flight: 2")
    for user in "abcd":
        pod.ask(user)
    assert (pod.asked, pod.counts) == (["a", "b"], (2, 2))
    first, second = pod.engines
    second >> ok()
    first >> ok()
    assert (pod.asked, pod.counts) == (["a", "d", "b", "c"], (2, 0)), "each on the connection that was free"


def test_what_does_not_fit_into_the_cache_waits_and_an_empty_engine_takes_anything() -> None:
    pod = Gated("max_in_flight: 9")
    pod.gate.controller.learn_capacity(2000)
    pod.ask("large", prompt=text(40_000))
    pod.ask("small", prompt="one")
    assert (pod.asked, pod.counts) == (["large"], (1, 1))
    pod.finish()
    pod.ask("medium", prompt=text(4000))
    assert pod.asked == ["large", "small", "medium"]


def test_the_wait_is_written_down() -> None:
    pod = Gated()
    pod.ask("a")
    pod.ask("b")
    pod.advance(2.5)
    pod.finish()
    assert (pod.record.queue_ms, pod.record.position) == (0.0, 0)
    pod.advance(20)
    pod.finish()
    assert pod.record.queue_ms == 2500
    assert pod.count("queue_seconds_count", model="other", **{"class": "standard"}) == 1


def test_higher_classes_go_first() -> None:
    pod = Gated()
    for user, cls in (("a", "batch"), ("b", "batch"), ("s", "standard"), ("p", "premium"), ("q", "premium")):
        pod.ask(user, cls)
    for _ in range(4):
        pod.finish()
    assert pod.asked == ["a", "p", "q", "s", "b"]


def test_who_fits_does_not_wait_behind_lower_work_that_does_not() -> None:
    pod = Gated("max_in_flight: 9", "classes: {batch: {ceiling: 0.25}}")
    pod.gate.controller.learn_capacity(2000)
    pod.ask("a", "batch", prompt=text(1200))
    pod.ask("b", "batch", prompt=text(1200))
    assert pod.counts == (1, 1)
    pod.ask("p", "premium")
    assert (pod.asked, pod.counts) == (["a", "p"], (2, 1))


def test_tenants_take_turns() -> None:
    pod = Gated()
    for user in ("a", "b", "c"):
        pod.ask(user)
    pod.ask("acme", "standard", ACME)
    for _ in range(3):
        pod.finish()
    assert pod.asked == ["a", "acme", "b", "c"]


def test_of_one_tenant_the_one_with_the_least_time_goes_first() -> None:
    pod = Gated()
    pod.ask("a")
    pod.ask("patient", "batch", "x-request-timeout-ms: 20000")
    pod.ask("hurried", "batch", "x-request-timeout-ms: 5000")
    pod.finish()
    assert pod.asked == ["a", "hurried"]


def test_what_is_not_work_passes_a_full_gate_and_takes_no_place() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    client = pod.client() >> get("/v1/models")
    assert pod.counts == (1, 0)
    pod.engine >> ok(b"models")
    assert client.answer().body == b"models"
    assert pod.counts == (1, 0)


def test_work_whose_body_is_not_kept_waits_too() -> None:
    pod = Gated()
    pod.ask("a")
    pod.client() >> post("/generate", b'{"user": "g"}')
    assert (pod.asked, pod.counts) == (["a"], (1, 1))
    pod.finish()
    assert pod.asked == ["a", "g"]


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 2")
    pod.ask("a", stream=True)
    gone, kept = pod.ask("b"), pod.ask("c")
    gone >> End.CLOSE
    pod.advance(0.5)
    assert pod.counts == (1, 1)
    other = pod.ask("d")
    assert (pod.counts, reason(kept), reason(other)) == ((1, 2), "", ""), "its place is free"
    for _ in range(3):
        pod.finish()
    assert pod.asked == ["a", "c", "d"]
    pod.assert_at_rest()


def on_their_way(pod: Gated) -> list[Exchange]:
    """What the engine works on."""
    found = [client._x for client in pod.context.clients]
    return [x for x in found if x is not None and x.upstream is not None]


def send_back(x: Exchange, stage: type[Stage]) -> None:
    assert x.upstream is not None
    x.upstream.abandon()
    stages = [type(enter.__self__) for enter in x.pipeline._enter]  # type: ignore[attr-defined]
    x.pipeline.retry(x, at=stages.index(stage))


def test_the_place_is_kept_while_the_attempt_changes() -> None:
    pod = Gated()
    pod.ask("a")
    pod.ask("b")
    (x,) = on_their_way(pod)
    send_back(x, Pick)
    pod.settle()
    assert (pod.asked, pod.counts) == (["a", "a"], (1, 1))


def test_who_is_sent_back_waits_before_others_of_its_class_with_all_its_time_again() -> None:
    pod = Gated("max_in_flight: 1, queue_timeout_s: 10")
    pod.ask("a", stream=True)
    pod.ask("b", stream=True)
    pod.advance(8)
    (x,) = on_their_way(pod)
    pod.ask("c")
    send_back(x, Admit)
    pod.settle()
    assert (pod.asked, pod.counts) == (["a", "b"], (1, 2))
    pod.advance(9)
    pod.finish()
    assert (pod.asked[-1], pod.counts) == ("a", (1, 1))


# How long.


@pytest.mark.parametrize(
    ("admission", "cls", "seconds"),
    [
        ("max_in_flight: 1", "premium", 1),
        ("max_in_flight: 1", "standard", 3),
        ("max_in_flight: 1", "batch", 30),
        ("max_in_flight: 1, queue_timeout_s: 7", "premium", 7),
        ("max_in_flight: 1, queue_timeout_s: 7", "batch", 7),
    ],
)
def test_nobody_waits_longer_than_its_class_allows(admission: str, cls: str, seconds: float) -> None:
    pod = Gated(admission + ", preempt: off")
    pod.ask("a")
    client = pod.ask("b", cls)
    pod.advance(seconds - 0.25)
    assert not client.has_news
    pod.advance(0.5)
    answer = told(client)
    assert (answer.status, answer.reason, pod.counts) == (503, "queue_timeout", (1, 0))
    assert pod.record.queue_ms == pytest.approx(1000 * seconds, abs=250)
    pod.finish()
    assert pod.asked == ["a"]


def test_a_class_may_be_given_another_wait_than_its_objective() -> None:
    pod = Gated(more="classes: {standard: {max_wait_s: 8}}")
    pod.ask("a")
    client = pod.ask("b")
    pod.advance(7.5)
    assert not client.has_news
    pod.advance(1)
    assert reason(client) == "queue_timeout"


def test_who_runs_does_not_time_out() -> None:
    pod = Gated()
    pod.ask("a")
    client = pod.ask("b")
    pod.finish()
    pod.advance(30)
    assert not client.has_news
    pod.engine >> ok(b"late")
    assert told(client).body == b"late"


def test_the_wait_counts_from_when_the_caller_first_asked() -> None:
    pod = Gated(more="trusted_proxies: [192.0.2.7]")
    pod.ask("a")
    client = pod.ask("b", "standard", f"x-request-start: t={pod.clock.wall() - 2:.3f}")
    pod.advance(0.75)
    assert not client.has_news
    pod.advance(0.5)
    assert reason(client) == "queue_timeout"


def test_a_caller_with_less_time_gets_its_answer_by_its_deadline() -> None:
    pod = Gated()
    pod.ask("a")
    client = pod.ask("b", "standard", "x-request-timeout-ms: 1500")
    pod.advance(1.75)
    answer = told(client)
    assert (answer.status, answer.reason, pod.counts) == (504, "timeout", (1, 0))


def test_who_could_not_be_in_time_any_more_is_told_so_when_it_is_its_turn() -> None:
    pod = Gated()
    pod.knows(work=1e9, prompts=1000)
    pod.ask("a")
    client = pod.ask("long", prompt=text(11_000))  # 2.75 s of work on the prompt, and 3 s to go
    pod.ask("short")
    pod.advance(1.5)
    pod.finish()
    assert (pod.asked, reason(client)) == (["a", "short"], "overloaded")


# A full queue.


def test_a_full_queue_drops_who_is_least_important() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 2")
    pod.ask("a")
    kept, dropped = pod.ask("b", "batch"), pod.ask("c", "batch")
    assert reason(pod.ask("d", "batch")) == "queue_full", "nobody is less important"
    premium = pod.ask("p", "premium")
    assert [reason(client) for client in (kept, dropped, premium)] == ["", "queue_full", ""]
    assert pod.counts == (1, 2)
    assert reason(pod.ask("s", "standard")) == ""
    assert reason(kept) == "queue_full"
    assert reason(pod.ask("t", "standard")) == "queue_full"
    pod.finish()
    pod.finish()
    assert pod.asked == ["a", "p", "s"]


def test_without_a_queue_nobody_waits() -> None:
    pod = Gated("max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    assert [reason(pod.ask("b", cls)) for cls in ("premium", "batch")] == ["queue_full", "queue_full"]
    assert pod.counts == (1, 0)


def test_bodies_that_wait_are_bounded_too() -> None:
    pod = Gated("max_in_flight: 1, max_queue_bytes: 4096")
    pod.ask("a")
    client = pod.ask("b", "batch", prompt=text(3000))
    assert reason(pod.ask("c", "batch", prompt=text(3000))) == "queue_full"
    assert reason(pod.ask("small", "batch")) == ""
    pod.ask("p", "premium", prompt=text(3000))
    assert (reason(client), pod.counts) == ("queue_full", (1, 1))
    assert 3000 <= pod.gate.queued_bytes <= 4096


def test_who_has_no_place_however_many_go_sends_nobody_away() -> None:
    pod = Gated("max_in_flight: 1, max_queue_bytes: 4096")
    pod.ask("a")
    waiting = [pod.ask(user, "batch", prompt=text(1000)) for user in "bcd"]
    assert reason(pod.ask("p", "premium", prompt=text(5000))) == "queue_full"
    assert ([reason(client) for client in waiting], pod.counts) == (["", "", ""], (1, 3))


# Off, and shadow.


def test_off_everything_runs_and_nothing_is_counted() -> None:
    pod = Gated("mode: off, max_in_flight: 1, max_queue: 0")
    clients = [pod.ask(user) for user in "abcde"]
    assert (sorted(pod.asked), pod.counts) == (list("abcde"), (0, 0))
    for engine in pod.engines:
        engine >> ok()
    assert [told(client).status for client in clients] == [200] * 5
    pod.assert_at_rest()


def test_shadow_everything_runs_and_what_would_have_been_is_counted() -> None:
    pod = Gated("mode: shadow, max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    pod.ask("b")
    assert (sorted(pod.asked), pod.counts) == (["a", "b"], (2, 0))
    assert pod.count("admission_shadow_total", decision="refuse", **{"class": "standard"}) == 1
    for engine in pod.engines:
        engine >> ok()
    pod.assert_at_rest()
    pod.reload("mode: shadow, max_in_flight: 1, max_queue: 5")
    for user in "cde":
        pod.ask(user, "batch")
    assert pod.count("admission_shadow_total", decision="queue", **{"class": "batch"}) == 2
    for _ in range(20):
        pod.advance(0.5)
    assert pod.counts == (3, 0), "nobody is put back either"


# Reloads.


def test_a_smaller_limit_waits_for_departures() -> None:
    pod = Gated("max_in_flight: 3")
    for user in "abcd":
        pod.ask(user)
    pod.reload("max_in_flight: 1")
    for engine in pod.engines[:2]:
        engine >> ok()
        assert "d" not in pod.asked
    pod.finish()
    assert (pod.asked[-1], pod.counts) == ("d", (1, 0))


def test_a_larger_limit_lets_in_all_who_fit_in_order() -> None:
    pod = Gated()
    for user in "abcd":
        pod.ask(user)
    pod.reload("max_in_flight: 3")
    assert (pod.asked, pod.counts) == (["a", "b", "c"], (3, 1))
    pod.ask("e")
    pod.finish()
    assert (pod.asked[-1], pod.counts) == ("d", (3, 1)), "who came last waits"


def test_turned_off_by_a_reload_the_gate_still_empties_its_queue() -> None:
    pod = Gated()
    pod.ask("a")
    waits = pod.ask("b")
    pod.reload("mode: off, max_in_flight: 1")
    pod.ask("c")
    assert (pod.asked, waits.has_news) == (["a", "b", "c"], False), "nobody waits for a gate that is no more"
    for engine in pod.engines:
        engine >> ok()
    pod.assert_at_rest()
