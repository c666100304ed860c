"""Who runs, who waits and for how long, and what the others are told: seen by callers and the engine."""

import json
from hashlib import sha256

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.exchange import Exchange
from tests.harness.engine import SSE, End, chunked, ok
from tests.harness.wire import CHAT, Answer, Client, Wire, get, post

# Whoever asks may choose any class.
ANYBODY = "tenants: [{name: anonymous, class: premium}, {name: acme, class: premium, key_sha256: ['%s']}]"
ACME = "x-api-key: acme"
ACME_SHA256 = sha256(b"acme").hexdigest()


class Pod(Wire):
    """A sidecar that lets one request run at a time, unless `admission` says otherwise.

    A request is known by its `user`, which the engine sees.
    """

    def __init__(self, admission: str = "max_in_flight: 1", more: str = "", engine: str = "") -> None:
        self._more = f"{ANYBODY % ACME_SHA256}\n{more}\n"
        super().__init__(f"admission: {{{admission}}}\n{self._more}", keys=engine)

    def reload(self, admission: str) -> None:
        self.configure(f"admission: {{{admission}}}\n{self._more}")

    def ask(
        self, user: str, cls: str = "standard", *fields: str, client: Client | None = None, **members: object
    ) -> Client:
        body = json.dumps({"user": user, **members}).encode()
        return (client or self.client()) >> post(CHAT, body, f"x-priority: {cls}", *fields)

    @property
    def asked(self) -> list[str]:
        """Users whose request the engine has seen, those of its first connection first."""
        self.settle()
        return [json.loads(seen.body)["user"] for engine in self.engines for seen in engine.seen]

    def finish(self) -> None:
        """The engine answers the newest."""
        self.engine >> ok()

    def knows(self, *, work: float, prompts: float = 1e6) -> None:
        """The engine's rates have been measured, in tokens a second."""
        self.gate.meter.work_rate = work
        self.gate.meter.prompt_rate = prompts

    @property
    def counts(self) -> tuple[int, int]:
        """In flight, queued."""
        return self.gate.in_flight, self.gate.queued

    def count(self, name: str, **labels: str) -> float:
        """Of a metric; 0 when nothing was counted."""
        return sum(
            sample.value
            for family in parse(self.metrics.render("")[0].decode())
            for sample in family.samples
            if sample.name == f"headgate_{name}" and sample.labels == labels
        )


def text(size: int) -> str:
    """So many bytes that are no image."""
    return ("word " * (size // 5 + 1))[:size]


def told(client: Client) -> Answer:
    return client.answer(b"POST")


def reason(client: Client) -> str:
    """Why it was refused; empty while it was not."""
    return told(client).reason if client.has_news else ""


# Who runs, who waits.


def test_work_runs_up_to_the_limit_and_waits_beyond_it_in_order() -> None:
    pod = Pod("max_in_flight: 2")
    for user in "abcd":
        pod.ask(user)
    assert (pod.asked, pod.counts) == (["a", "b"], (2, 2))
    first, second = pod.engines
    second >> ok()
    first >> ok()
    assert (pod.asked, pod.counts) == (["a", "d", "b", "c"], (2, 0)), "each on the connection that was free"


def test_what_does_not_fit_into_the_cache_waits_and_an_empty_engine_takes_anything() -> None:
    pod = Pod("max_in_flight: 9")
    pod.gate.controller.learn_capacity(2000)
    pod.ask("large", prompt=text(40_000))
    pod.ask("small", prompt="one")
    assert (pod.asked, pod.counts) == (["large"], (1, 1))
    pod.finish()
    pod.ask("medium", prompt=text(4000))
    assert pod.asked == ["large", "small", "medium"]


def test_the_wait_is_written_down() -> None:
    pod = Pod()
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
    pod = Pod()
    for user, cls in (("a", "batch"), ("b", "batch"), ("s", "standard"), ("p", "premium"), ("q", "premium")):
        pod.ask(user, cls)
    for _ in range(4):
        pod.finish()
    assert pod.asked == ["a", "p", "q", "s", "b"]


def test_who_fits_does_not_wait_behind_lower_work_that_does_not() -> None:
    pod = Pod("max_in_flight: 9", "classes: {batch: {ceiling: 0.25}}")
    pod.gate.controller.learn_capacity(2000)
    pod.ask("a", "batch", prompt=text(1200))
    pod.ask("b", "batch", prompt=text(1200))
    assert pod.counts == (1, 1)
    pod.ask("p", "premium")
    assert (pod.asked, pod.counts) == (["a", "p"], (2, 1))


def test_tenants_take_turns() -> None:
    pod = Pod()
    for user in ("a", "b", "c"):
        pod.ask(user)
    pod.ask("acme", "standard", ACME)
    for _ in range(3):
        pod.finish()
    assert pod.asked == ["a", "acme", "b", "c"]


def test_of_one_tenant_the_one_with_the_least_time_goes_first() -> None:
    pod = Pod()
    pod.ask("a")
    pod.ask("patient", "batch", "x-request-timeout-ms: 20000")
    pod.ask("hurried", "batch", "x-request-timeout-ms: 5000")
    pod.finish()
    assert pod.asked == ["a", "hurried"]


def test_what_is_not_work_passes_a_full_gate_and_takes_no_place() -> None:
    pod = Pod("max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    client = pod.client() >> get("/v1/models")
    assert pod.counts == (1, 0)
    pod.engine >> ok(b"models")
    assert client.answer().body == b"models"
    assert pod.counts == (1, 0)


def test_work_whose_body_is_not_kept_waits_too() -> None:
    pod = Pod()
    pod.ask("a")
    pod.client() >> post("/generate", b'{"user": "g"}')
    assert (pod.asked, pod.counts) == (["a"], (1, 1))
    pod.finish()
    assert pod.asked == ["a", "g"]


def test_a_client_that_leaves_while_it_waits_leaves_nothing_behind() -> None:
    pod = Pod("max_in_flight: 1, max_queue: 2")
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


def test_the_place_is_kept_while_the_attempt_changes() -> None:
    pod = Pod()
    pod.ask("a")
    pod.ask("b")
    (x,) = [x for client in pod.context.clients if (x := client._x) is not None and x.upstream]
    send_back(x, to=x.entered - 1)
    pod.settle()
    assert (pod.asked, pod.counts) == (["a", "a"], (1, 1))


def test_who_is_sent_back_goes_before_others_of_its_class_with_all_its_time_again() -> None:
    pod = Pod("max_in_flight: 2, queue_timeout_s: 10")
    for user in "abcd":
        pod.ask(user)
    pod.advance(8)
    for x in [x for client in pod.context.clients if (x := client._x) is not None and x.upstream]:
        send_back(x, to=x.pipeline._enter.__len__() - 2)  # the index of Admit
    pod.settle()
    assert pod.counts == (2, 2)


def send_back(x: Exchange, to: int) -> None:
    assert x.upstream is not None
    x.upstream.abandon()
    x.pipeline.retry(x, at=to)


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
    pod = Pod(admission + ", preempt: off")
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
    pod = Pod(more="classes: {standard: {max_wait_s: 8}}")
    pod.ask("a")
    client = pod.ask("b")
    pod.advance(7.5)
    assert not client.has_news
    pod.advance(1)
    assert reason(client) == "queue_timeout"


def test_who_runs_does_not_time_out() -> None:
    pod = Pod()
    pod.ask("a")
    client = pod.ask("b")
    pod.finish()
    pod.advance(30)
    assert not client.has_news
    pod.engine >> ok(b"late")
    assert told(client).body == b"late"


def test_the_wait_counts_from_when_the_caller_first_asked() -> None:
    pod = Pod(more="trusted_proxies: [192.0.2.7]")
    pod.ask("a")
    client = pod.ask("b", "standard", f"x-request-start: t={pod.clock.wall() - 2:.3f}")
    pod.advance(0.75)
    assert not client.has_news
    pod.advance(0.5)
    assert reason(client) == "queue_timeout"


def test_a_caller_with_less_time_gets_its_answer_by_its_deadline() -> None:
    pod = Pod()
    pod.ask("a")
    client = pod.ask("b", "standard", "x-request-timeout-ms: 1500")
    pod.advance(1.75)
    answer = told(client)
    assert (answer.status, answer.reason, pod.counts) == (504, "timeout", (1, 0))


def test_who_could_not_be_in_time_any_more_is_told_so_when_it_is_its_turn() -> None:
    pod = Pod()
    pod.knows(work=1e9, prompts=1000)
    pod.ask("a")
    client = pod.ask("long", prompt=text(11_000))  # 2.75 s of work on the prompt, and 3 s to go
    pod.ask("short")
    pod.advance(1.5)
    pod.finish()
    assert (pod.asked, reason(client)) == (["a", "short"], "overloaded")


# A full queue.


def test_a_full_queue_drops_who_is_least_important() -> None:
    pod = Pod("max_in_flight: 1, max_queue: 2")
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
    pod = Pod("max_in_flight: 1, max_queue: 0")
    pod.ask("a")
    assert [reason(pod.ask("b", cls)) for cls in ("premium", "batch")] == ["queue_full", "queue_full"]
    assert pod.counts == (1, 0)


def test_bodies_that_wait_are_bounded_too() -> None:
    pod = Pod("max_in_flight: 1, max_queue_bytes: 4096")
    pod.ask("a")
    client = pod.ask("b", "batch", prompt=text(3000))
    assert reason(pod.ask("c", "batch", prompt=text(3000))) == "queue_full"
    assert reason(pod.ask("small", "batch")) == ""
    pod.ask("p", "premium", prompt=text(3000))
    assert (reason(client), pod.counts) == ("queue_full", (1, 1)) or pod.gate.queued_bytes <= 4096


# Refusals, and when to return.


def test_who_would_come_too_late_is_told_at_once_and_when_there_will_be_room() -> None:
    pod = Pod()
    pod.knows(work=1000)
    pod.ask("a")
    for user in ("b", "c", "d"):
        pod.ask(user)
    answer = told(pod.ask("e"))
    assert (answer.status, answer.reason, answer[b"x-headgate-elsewhere"]) == (503, "overloaded", b"1")
    assert b"x-should-retry" not in answer
    wait_ms = int(answer[b"retry-after-ms"])
    assert 0 < wait_ms <= 60_000 * 1.2
    assert int(answer[b"retry-after"]) == -(-wait_ms // 1000), "whole seconds, rounded up"
    assert pod.counts[0] == 1
    assert pod.record.predicted_ms > 3000


def crowded(pod: Pod, *, cls: str = "standard") -> None:
    """One runs and three wait, for more than 3 seconds of work."""
    pod.knows(work=1000)
    pod.ask("a")
    for user in ("b", "c", "d"):
        pod.ask(user, cls)
    assert pod.counts == (1, 3)


def test_who_stops_waiting_before_there_is_room_is_told_not_to_come_back() -> None:
    pod = Pod()
    crowded(pod)
    answer = told(pod.ask("e", "standard", "x-request-timeout-ms: 1000"))
    assert (answer.reason, answer[b"x-should-retry"]) == ("overloaded", b"false")
    assert b"retry-after" not in answer
    assert b"retry-after-ms" not in answer


def test_nobody_is_invited_where_nothing_is_kept_for_returns() -> None:
    pod = Pod("max_in_flight: 1, invited: 0")
    crowded(pod)
    assert told(pod.ask("e"))[b"x-should-retry"] == b"false"


def test_invitations_are_for_one_after_the_other() -> None:
    pod = Pod()
    crowded(pod)
    waits = [int(answer[b"retry-after-ms"]) for user in "efg" if b"retry-after-ms" in (answer := told(pod.ask(user)))]
    assert waits[1:], "more than one is invited"
    assert waits == sorted(set(waits))


def test_nobody_is_refused_for_a_guess() -> None:
    pod = Pod("max_in_flight: 1, max_queue: 100")
    pod.ask("a")
    for _ in range(100):
        assert reason(pod.ask("b", prompt=text(2000))) == ""
    assert pod.counts == (1, 100)


def test_higher_classes_are_not_refused_for_the_work_of_lower_ones() -> None:
    pod = Pod()
    crowded(pod, cls="batch")
    assert reason(pod.ask("e", "standard")) == ""
    assert reason(pod.ask("p", "premium")) == "", "though one is before it"


# Coming back.


def invited(pod: Pod, user: str, *fields: str) -> float:
    """Refuses `user`, and says in how many seconds it is expected back."""
    answer = told(pod.ask(user, "standard", *fields))
    assert answer.reason == "overloaded"
    return int(answer[b"retry-after-ms"]) / 1000


def emptied(pod: Pod) -> None:
    """All who wait have been served."""
    while pod.gate.in_flight:
        pod.finish()


def test_who_was_invited_and_comes_in_time_goes_before_first_attempts() -> None:
    pod = Pod()
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
    pod = Pod()
    crowded(pod)
    seconds = invited(pod, "back")
    pod.advance(seconds)
    pod.ask("back")
    pod.finish()
    assert pod.asked[-1] == "back"


def test_who_comes_before_its_time_goes_behind_first_attempts() -> None:
    pod = Pod()
    crowded(pod)
    seconds = invited(pod, "back")
    assert seconds > 0.5
    emptied(pod)
    for user in ("now", "back", "first"):
        pod.ask(user)
    pod.finish()
    assert pod.asked[-1] == "first"


def test_who_was_told_not_to_come_goes_behind_first_attempts() -> None:
    pod = Pod()
    crowded(pod)
    assert told(pod.ask("back", "standard", "x-request-timeout-ms: 1000"))[b"x-should-retry"] == b"false"
    emptied(pod)
    pod.advance(1)
    for user in ("now", "back", "first"):
        pod.ask(user)
    pod.finish()
    assert pod.asked[-1] == "first"


def test_who_says_that_it_is_a_repeat_is_one() -> None:
    pod = Pod()
    pod.ask("a")
    pod.ask("repeat", "standard", "x-stainless-retry-count: 2")
    pod.client() >> post("/generate", b'{"user": "g"}', "x-stainless-retry-count: 1")
    pod.ask("first")
    pod.finish()
    assert pod.asked == ["a", "first"]


def test_the_bytes_of_another_tenant_are_not_known_again() -> None:
    pod = Pod()
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
    pod = Pod()
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
    pod = Pod(more="trusted_proxies: [192.0.2.7]")
    crowded(pod)
    seconds = invited(pod, "back")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    client = pod.ask("back", "standard", f"x-request-start: t={pod.clock.wall() - seconds:.3f}")
    pod.advance(2.5)
    assert not client.has_news


def test_refused_again_it_is_still_the_one_that_came_first() -> None:
    """Patience is counted from when a caller first asked, so a refusal cannot go on for ever."""
    pod = Pod("max_in_flight: 1, max_queue: 1")
    pod.knows(work=1000)
    pod.ask("a", stream=True)
    pod.ask("b", "batch", "x-priority: batch")
    answer = told(pod.ask("back", "batch"))
    for _ in range(60):
        pod.advance(int(answer[b"retry-after-ms"]) / 1000)
        answer = told(pod.ask("back", "batch"))
        if b"x-should-retry" in answer:
            break
    else:
        pytest.fail("it was invited for ever")


# Giving way before the first token.


def blocked(pod: Pod, *, stream: bool = True) -> tuple[Client, Client]:
    """A batch request runs, and premium work waits for its place."""
    low = pod.ask("low", "batch", stream=stream)
    return low, pod.ask("high", "premium")


def test_work_without_a_first_token_gives_way_and_nobody_sees_it() -> None:
    pod = Pod()
    low, high = blocked(pod)
    assert pod.asked == ["low"]
    engine = pod.engine
    pod.advance(0.5)
    assert engine.aborted, "the GPU stops"
    assert (pod.asked, pod.counts, low.has_news) == (["low", "high"], (1, 1), False)
    assert pod.count("preemptions_total", how="requeued", **{"class": "batch"}) == 1
    pod.engine >> ok(b"first")
    pod.engine >> ok(b"then")
    assert [told(client).body for client in (high, low)] == [b"first", b"then"]
    assert (pod.record.attempts, pod.record.reason) == (2, "")
    pod.assert_at_rest()


def test_it_keeps_its_place_before_others_of_its_class() -> None:
    pod = Pod()
    _, high = blocked(pod)
    pod.ask("other", "batch")
    pod.advance(0.5)
    pod.finish()
    assert pod.asked[-1] == "low"
    assert told(high).status == 200


def test_a_head_alone_is_no_token() -> None:
    """Engines send the head of a stream when they accept the request."""
    pod = Pod()
    low, _ = blocked(pod)
    pod.engine >> SSE
    pod.advance(0.5)
    assert (pod.asked[-1], low.has_news) == ("high", False)


@pytest.mark.parametrize("admission", ["max_in_flight: 1", "max_in_flight: 1, preempt: off"])
def test_an_answer_that_has_begun_goes_on(admission: str) -> None:
    pod = Pod(admission)
    low, _ = blocked(pod)
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    pod.advance(0.5)
    assert (pod.asked, pod.counts) == (["low"], (1, 1))
    pod.engine >> chunked(b"data: 2\n\n")
    assert told(low).body == b"data: 1\n\ndata: 2\n\n"


def test_off_nobody_gives_way() -> None:
    pod = Pod("max_in_flight: 1, preempt: off")
    _, high = blocked(pod)
    pod.advance(0.75)
    assert (pod.asked, high.has_news) == (["low"], False)


def test_a_body_that_was_not_kept_cannot_be_sent_again() -> None:
    pod = Pod()
    pod.client() >> post("/generate", b'{"user": "g"}', "x-priority: batch")
    pod.ask("high", "premium")
    pod.advance(0.5)
    assert (pod.asked, pod.counts) == (["g"], (1, 1))


def test_equals_do_not_give_way() -> None:
    pod = Pod()
    pod.ask("a", "premium", stream=True)
    pod.ask("b", "premium")
    pod.advance(0.75)
    assert pod.asked == ["a"]


def test_where_it_is_configured_the_lowest_class_ends_even_if_it_has_begun() -> None:
    pod = Pod("max_in_flight: 1, preempt: started")
    low, _ = blocked(pod)
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    engine = pod.engine
    pod.advance(0.5)
    assert (pod.asked[-1], engine.aborted) == ("high", True)
    answer = told(low)
    assert (answer.status, answer.complete) == (200, False), "cut short it must not look complete"
    assert answer.body.startswith(b"data: 1\n\n")
    assert b'"code":"preempted"' in answer.body
    assert pod.count("preemptions_total", how="ended", **{"class": "batch"}) == 1
    assert pod.record.reason == "preempted"


def test_only_the_lowest_class_ends() -> None:
    pod = Pod("max_in_flight: 1, preempt: started")
    low = pod.ask("low", "standard", stream=True)
    pod.ask("high", "premium")
    pod.engine >> SSE + chunked(b"data: 1\n\n", last=False)
    pod.advance(0.75)
    assert (pod.asked, told(low).complete) == (["low"], False)
    assert pod.engine.is_open


# Off, and shadow.


def test_off_everything_runs_and_nothing_is_counted() -> None:
    pod = Pod("mode: off, max_in_flight: 1, max_queue: 0")
    clients = [pod.ask(user) for user in "abcde"]
    assert (sorted(pod.asked), pod.counts) == (list("abcde"), (0, 0))
    for engine in pod.engines:
        engine >> ok()
    assert [told(client).status for client in clients] == [200] * 5
    pod.assert_at_rest()


def test_shadow_everything_runs_and_what_would_have_been_is_counted() -> None:
    pod = Pod("mode: shadow, max_in_flight: 1, max_queue: 0")
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


# What the engine is told.


@pytest.mark.parametrize(("cls", "priority"), [("premium", 0), ("standard", 1), ("batch", 2)])
def test_an_engine_with_priorities_is_told_the_class(cls: str, priority: int) -> None:
    pod = Pod(engine="priority: on")
    pod.ask("a", cls, priority=-100)
    assert json.loads(pod.engine.request().body) == {"user": "a", "priority": priority}


def test_others_get_the_body_as_it_came() -> None:
    pod = Pod()
    body = b'{"user" : "a",\n"priority": -100}'
    pod.client() >> post(CHAT, body)
    assert pod.engine.request().body == body


def test_a_class_in_the_body_does_not_hide_who_was_invited() -> None:
    pod = Pod(engine="priority: on")
    crowded(pod)
    seconds = invited(pod, "back")
    emptied(pod)
    pod.advance(seconds)
    pod.ask("now")
    pod.ask("back")
    pod.finish()
    pod.finish()
    assert pod.record.invited


# What it learns.


def expected(pod: Pod) -> float:
    """Tokens that the next answer is expected to have."""
    return pod.plane.estimates.expect("anonymous", "other", 100, None)[2]


USAGE = b'"usage":{"prompt_tokens":20,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":16}}'


def answered(pod: Pod, *pieces: bytes, stream: bool) -> float:
    """What is expected after many of these answers."""
    for _ in range(40):
        client = pod.ask("a", stream=stream)
        for piece in pieces:
            pod.engine >> piece
        assert told(client).complete
    return expected(pod)


def test_the_length_of_answers_is_learnt_from_usage() -> None:
    pod = Pod()
    before = expected(pod)
    assert answered(pod, ok(b'{"choices":[{"text":"..."}],%b}' % USAGE), stream=False) < before / 2
    assert (pod.record.answer_tokens, pod.record.reason) == (7, "")
    prompt, fresh, _ = pod.plane.estimates.expect("anonymous", "other", 100, None)
    assert fresh < prompt / 2, "most of the prompt was cached"


def test_and_from_the_last_event_of_a_stream() -> None:
    pod = Pod()
    pieces = chunked(b'data: {"text":"a"}\n\n', last=False), chunked(b'data: {"choices":[],%b}\n\n' % USAGE, last=False)
    before = expected(pod)
    assert answered(pod, SSE, *pieces, chunked(b"data: [DONE]\n\n"), stream=True) < before / 2
    assert pod.record.answer_tokens == 7


def test_events_are_counted_where_there_is_no_usage() -> None:
    pod = Pod()
    events = [chunked(b'data: {"text":"%d"}\n\n' % i, last=False) for i in range(10)]
    assert answered(pod, SSE, *events, chunked(b"data: [DONE]\n\n"), stream=True) < 200
    assert pod.record.answer_tokens in (10, 11)


def test_an_answer_without_either_is_judged_by_its_duration() -> None:
    pod = Pod()
    before = expected(pod)
    assert answered(pod, ok(b"{}"), stream=False) < before


@pytest.mark.parametrize("end", ["client_gone", "upstream_reset", "error"])
def test_answers_that_are_not_whole_teach_nothing(end: str) -> None:
    pod = Pod()
    before = expected(pod)
    for _ in range(20):
        client = pod.ask("a", stream=True)
        if end == "error":
            pod.engine >> b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(USAGE) + USAGE
            continue
        pod.engine >> SSE + chunked(b"data: {%b}\n\n" % USAGE, last=False)
        if end == "client_gone":
            client >> End.RESET
        else:
            pod.engine >> End.RESET
        assert pod.record.reason == end
    assert expected(pod) == before
    pod.assert_at_rest()


def test_what_a_caller_allows_at_most_bounds_what_is_expected() -> None:
    pod = Pod()
    pod.ask("a", max_tokens=5)
    (ticket,) = pod.gate.running
    assert ticket.answer == 5
    pod.finish()
    pod.ask("a", max_tokens=5, n=3)
    (ticket,) = pod.gate.running
    assert ticket.answer == 15


# Reloads.


def test_a_smaller_limit_waits_for_departures() -> None:
    pod = Pod("max_in_flight: 3")
    for user in "abcd":
        pod.ask(user)
    pod.reload("max_in_flight: 1")
    for engine in pod.engines[:2]:
        engine >> ok()
        assert "d" not in pod.asked
    pod.finish()
    assert (pod.asked[-1], pod.counts) == ("d", (1, 0))


def test_a_larger_limit_lets_in_all_who_fit_in_order() -> None:
    pod = Pod()
    for user in "abcd":
        pod.ask(user)
    pod.reload("max_in_flight: 3")
    assert (pod.asked, pod.counts) == (["a", "b", "c"], (3, 1))
    pod.ask("e")
    pod.finish()
    assert (pod.asked[-1], pod.counts) == ("d", (3, 1)), "who came last waits"


def test_turned_off_by_a_reload_the_gate_still_empties_its_queue() -> None:
    pod = Pod()
    pod.ask("a")
    waits = pod.ask("b")
    pod.reload("mode: off")
    pod.ask("c")
    assert (pod.asked, waits.has_news) == (["a", "c"], False)
    pod.engines[0] >> ok()
    assert (pod.asked, pod.counts) == (["a", "b", "c"], (1, 0))
    for engine in pod.engines:
        engine >> ok()
    pod.assert_at_rest()
