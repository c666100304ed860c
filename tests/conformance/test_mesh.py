"""Two pods: what one cannot answer the other does, and its caller sees one clean answer.

The peer is one more endpoint that the sidecar connects to. Where it is a sidecar as well, the bytes of the
one are handed to the other.
"""

from typing import Final

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.balance.caller import Caller, belongs_to, lines, read
from sidecar.balance.heartbeat import Heartbeat
from tests.harness.engine import SSE, End, Engine, answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post

KEYS: Final = (b"first-key-of-the-mesh",)
OWN: Final = "127.0.0.1:8000"
STREAM: Final = b'{"stream": true}'
ROLE: Final = b'data: {"choices": [{"delta": {"role": "assistant", "content": ""}}]}\n\n'
DONE: Final = b"data: [DONE]\n\n"
PING: Final = b": ping\n\n"
UNFRAMED: Final = answer(b"200 OK", b"", b"content-type: text/event-stream")


def token(text: str) -> bytes:
    return b'data: {"choices": [{"delta": {"content": "%b"}}]}\n\n' % text.encode()


class Pod(Wire):
    """One pod with `peers` others, which it has heard of."""

    def __init__(self, config: str = "", *, pod: str = "pod-0", peers: int = 1, keys: str = "") -> None:
        mesh = f"mesh: {{pod: {pod}, peers: ['10.0.0.1:80'], secret_file: unread}}"
        retry = "" if "retry:" in config else "retry: {base_ms: 1}"
        super().__init__(f"{mesh}\n{retry}\n{config}", keys=keys)
        self.plane.hop.keys = KEYS
        for n in range(1, peers + 1):
            self.hears(n)

    def hears(self, n: int, **more: object) -> None:
        heartbeat = Heartbeat(f"pod-{n}", f"10.0.0.{n}:80", "serving", **more)  # type: ignore[arg-type]
        self.plane.fleet.hear(heartbeat, self.clock.now())

    def at(self, name: str) -> Engine:
        """The newest connection there."""
        return next(engine for engine in reversed(self.engines) if engine.endpoint.name == name)

    @property
    def own(self) -> Engine:
        return self.at(OWN)

    @property
    def peer(self) -> Engine:
        return self.at("10.0.0.1:80")

    @property
    def went(self) -> list[str]:
        """Where connections were made to."""
        return [engine.endpoint.name for engine in self.engines]

    @property
    def attempts(self) -> dict[tuple[str, str], float]:
        return {
            (sample.labels["to"], sample.labels["outcome"]): sample.value
            for family in parse(self.metrics.render("")[0].decode())
            for sample in family.samples
            if sample.name == "headgate_attempts_total"
        }

    def ask(self, body: bytes = STREAM, *fields: str) -> Client:
        return self.client() >> post(CHAT, body, *fields)

    def assert_at_rest(self) -> None:
        super().assert_at_rest()
        assert [peer.in_flight for peer in self.plane.fleet.peers.values()] == [0] * len(
            self.plane.fleet.peers
        )


FAILURES: Final[dict[str, tuple[str, tuple[bytes | End, ...]]]] = {
    "resets": ("upstream_reset", (End.RESET,)),
    "closes": ("upstream_reset", (End.CLOSE,)),
    "half a head": ("upstream_reset", (SSE[:30], End.RESET)),
    "nonsense": ("upstream_protocol", (b"220 smtp.example ESMTP\r\n",)),
    "503": ("status", (answer(b"503 No", b"no", b"content-length: 2"),)),
    "500, in pieces": ("status", (b"HTTP/1.1 500 No\r\n", b"content-length: 9\r\n\r\nno", End.RESET)),
    "an empty stream": ("empty_stream", (SSE, chunked())),
    "an empty stream that ends": ("empty_stream", (UNFRAMED, End.CLOSE)),
    "a head, then a reset": ("upstream_reset", (SSE, End.RESET)),
    "a role, then a reset": ("upstream_reset", (SSE + chunked(ROLE, last=False), End.RESET)),
    "a role and pings": ("upstream_reset", (SSE, chunked(PING, ROLE, PING, last=False), End.RESET)),
    "a role, and nothing else": ("empty_stream", (SSE + chunked(ROLE, DONE),)),
}


@pytest.mark.parametrize("how", FAILURES)
def test_what_fails_before_its_first_token_is_answered_by_a_peer(how: str) -> None:
    outcome, events = FAILURES[how]
    pod = Pod()
    client = pod.ask()
    for event in events:
        pod.own >> event
    assert not client.has_news, "not a byte of the first attempt has reached the client"
    assert pod.went == [OWN, "10.0.0.1:80"]
    seen = pod.peer.request()
    assert (seen.method, seen.target, seen.body) == (b"POST", CHAT.encode(), STREAM)
    pod.peer >> SSE + chunked(ROLE, token("Hi"), DONE)
    told = client.answer(b"POST")
    assert (told.status, told.reason, told.complete) == (200, "", True)
    assert told.body == ROLE + token("Hi") + DONE
    assert pod.attempts == {("engine", outcome): 1, ("peer", "ok"): 1}
    assert not pod.own.is_open
    pod.assert_at_rest()


def test_an_engine_that_refuses_connections() -> None:
    pod = Pod()
    pod.dialer.refusing.add(OWN)
    client = pod.ask(b"{}")
    assert pod.went == ["10.0.0.1:80"]
    pod.peer >> ok(b"fine")
    assert client.answer(b"POST").body == b"fine"
    pod.ask(b"{}")
    assert pod.attempts == {("engine", "connect_failed"): 1, ("peer", "ok"): 1}, "the next goes there at once"


def test_an_engine_that_is_silent_for_longer_than_any_other_time() -> None:
    pod = Pod("retry: {base_ms: 1, per_try_min_s: 2, per_try_max_s: 4}")
    client = pod.ask()
    pod.own >> SSE + chunked(ROLE, last=False)
    pod.advance(3.75)
    assert pod.went == [OWN]
    pod.advance(1.75)  # looked at every quarter
    assert pod.went == [OWN, "10.0.0.1:80"]
    assert pod.own.aborted
    pod.peer >> SSE + chunked(token("Hi"))
    assert client.answer(b"POST").body == token("Hi")
    assert pod.attempts == {("engine", "first_token_timeout"): 1, ("peer", "ok"): 1}
    pod.assert_at_rest()


def test_where_no_other_pod_could_do_it_the_late_one_still_may() -> None:
    pod = Pod("retry: {base_ms: 1, per_try_min_s: 2, per_try_max_s: 4}")
    pod.catalog.load(b'{"data": [{"id": "ours"}]}')
    pod.hears(1, models=("theirs",))
    client = pod.ask(b'{"stream": true, "model": "ours"}')
    pod.advance(20.0)
    pod.own >> SSE + chunked(token("Hi"))
    assert client.answer(b"POST").body == token("Hi")
    assert pod.attempts == {("engine", "ok"): 1}
    pod.assert_at_rest()


@pytest.mark.parametrize("begins", [token("Hi"), b'data: {"error": {"message": "lost"}}\n\n', b"data: ?\n\n"])
def test_what_has_begun_is_broken_off_and_not_begun_again(begins: bytes) -> None:
    pod = Pod()
    client = pod.ask()
    pod.own >> SSE + chunked(ROLE, begins, last=False) >> End.RESET
    told = client.answer(b"POST")
    assert told.body.startswith(ROLE + begins)
    assert b"upstream_reset" in told.body
    assert (told.complete, pod.went) == (False, [OWN])
    pod.assert_at_rest()


def test_a_refusal_of_the_last_attempt_is_the_answer() -> None:
    pod = Pod()
    client = pod.ask()
    pod.own >> answer(b"503 No", b"ours", b"content-length: 4")
    pod.peer >> answer(b"500 No", b"theirs", b"content-length: 6")
    told = client.answer(b"POST")
    assert (told.status, told.body, told.complete) == (500, b"theirs", True)
    pod.assert_at_rest()


def test_where_everybody_fails_the_caller_is_told_so_once() -> None:
    pod = Pod()
    client = pod.ask()
    pod.own >> End.RESET
    pod.peer >> End.RESET
    told = client.answer(b"POST")
    assert (told.status, told.reason, told.complete) == (502, "upstream_reset", True)
    pod.assert_at_rest()


def test_a_peer_that_is_full_sends_us_on() -> None:
    pod = Pod(peers=2)
    pod.endpoint.healthy = False
    client = pod.ask(b"{}")
    first = pod.engine
    first >> answer(b"503 No", b"no", b"content-length: 2", b"x-headgate-reason: overloaded")
    assert len(pod.engines) == 2
    assert pod.engine.endpoint is not first.endpoint
    pod.engine >> ok(b"fine")
    assert client.answer(b"POST").body == b"fine"
    pod.assert_at_rest()


@pytest.mark.parametrize("peers", [1, 2])
def test_a_peer_that_does_not_believe_us_is_no_matter_of_the_callers(peers: int) -> None:
    pod = Pod(peers=peers)
    pod.endpoint.healthy = False
    client = pod.ask(b"{}")
    pod.engine >> answer(b"403 No", b"no", b"content-length: 2", b"x-headgate-reason: forbidden")
    assert len(pod.engines) == peers
    if peers > 1:
        pod.engine >> ok(b"fine")
    told = client.answer(b"POST")
    assert (told.status, told.reason) == ((200, "") if peers > 1 else (503, "no_endpoint"))
    pod.assert_at_rest()


def test_what_a_peer_calls_its_reason_is_one_that_we_know() -> None:
    pod = Pod()
    pod.endpoint.healthy = False
    client = pod.ask(b"{}")
    pod.peer >> answer(b"400 No", b"no", b"content-length: 2", b"x-headgate-reason: whatever")
    assert client.answer(b"POST").reason == "whatever"
    assert pod.record.reason == "other"


def test_a_whole_answer_of_a_peer_takes_as_long_as_what_was_asked_for() -> None:
    pod = Pod("timeouts: {first_byte_s: 20}")
    pod.endpoint.healthy = False
    client = pod.ask(b'{"max_tokens": 2000}')  # a minute, at 30 ms
    pod.advance(100.0)
    assert not client.has_news
    pod.advance(30.0)
    assert client.answer(b"POST").reason == "first_token_timeout"
    pod.assert_at_rest()


@pytest.mark.parametrize("mode", ["on", "off"])
def test_retries_have_a_budget_whatever_admission_does(mode: str) -> None:
    pod = Pod(f"admission: {{mode: '{mode}'}}\nretry: {{base_ms: 1, budget: 0}}\noutlier: {{mode: 'off'}}")
    for _ in range(40):
        client = pod.ask(b"{}")
        pod.own >> answer(b"503 No", b"no", b"content-length: 2")
        if not client.has_news:
            pod.peer >> ok(b"fine")
    assert pod.attempts[("engine", "status")] == 40
    assert pod.attempts[("peer", "ok")] == 10, "what may be in any case"


def test_the_last_peers_refusal_keeps_its_reason() -> None:
    pod = Pod()
    pod.endpoint.healthy = False
    client = pod.ask(b"{}")
    fields = b"x-headgate-reason: overloaded", b"retry-after: 3", b"retry-after-ms: 2500"
    pod.peer >> answer(b"503 No", b"no", b"content-length: 2", *fields)
    told = client.answer(b"POST")
    assert (told.status, told.reason, told[b"retry-after-ms"]) == (503, "overloaded", b"2500")


def test_only_the_final_attempts_tokens_count() -> None:
    pod = Pod()
    pod.ask()
    pod.own >> SSE + chunked(ROLE, ROLE, ROLE, last=False) >> End.RESET
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}\n\n'
    pod.peer >> SSE + chunked(ROLE, token("a"), token("b"), usage, DONE)
    assert (pod.record.answer_tokens, pod.record.attempts) == (2, 2)
    pod.assert_at_rest()


class TestKeepAlives:
    """Comments keep a connection alive, and nothing else."""

    LIMITS = "timeouts: {first_byte_s: 8, stall_s: 8}\nretry: {mode: 'off'}"

    def ping(self, pod: Pod, seconds: int) -> None:
        for _ in range(seconds):
            pod.advance(1.0)
            if pod.own.is_open:
                pod.own >> chunked(PING, last=False)

    def test_they_do_not_end_the_wait_for_a_token(self) -> None:
        pod = Pod(self.LIMITS)
        client = pod.ask()
        pod.own >> SSE
        self.ping(pod, 7)
        assert not client.has_news
        self.ping(pod, 4)
        assert client.answer(b"POST").reason == "first_token_timeout"

    def test_where_nobody_else_could_do_it_they_are_passed_on_in_the_end(self) -> None:
        alone = Wire("timeouts: {stall_s: 30}")
        client = alone.client() >> post(CHAT, STREAM)
        alone.engine >> SSE + chunked(PING, ROLE, last=False)
        alone.advance(14.0)
        assert not client.has_news
        alone.advance(8.0)
        alone.engine >> chunked(PING, token("Hi"), DONE)
        told = client.answer(b"POST")
        assert (told.complete, told.body) == (True, PING + ROLE + PING + token("Hi") + DONE)
        alone.assert_at_rest()

    def test_they_do_not_extend_a_stall(self) -> None:
        pod = Pod(self.LIMITS)
        client = pod.ask()
        pod.own >> SSE + chunked(token("Hi"), last=False)
        self.ping(pod, 7)
        assert client.is_open
        self.ping(pod, 4)
        assert b"stalled" in client.answer(b"POST").body

    def test_tokens_do(self) -> None:
        pod = Pod(self.LIMITS)
        client = pod.ask()
        pod.own >> SSE + chunked(token("Hi"), last=False)
        for _ in range(5):
            self.ping(pod, 6)
            pod.own >> chunked(token("Hi"), last=False)
        pod.own >> chunked(DONE)
        assert client.answer(b"POST").complete


# What goes between pods.


ROOT: Final = Caller("pod-9", "root", "premium", 1000.0, "", 0, 0, None, None)
FORGED: Final = (
    *lines(ROOT, KEYS, b"").decode().rstrip().split("\r\n"),
    "X-Headgate-Other: 1",
    "x_headgate_hop: 1",
)


def test_what_a_caller_writes_as_ours_reaches_nobody() -> None:
    pod = Pod()
    pod.ask(STREAM, *FORGED)
    assert not [name for name, _ in pod.own.request().fields if b"headgate" in name.replace(b"_", b"-")]
    pod.own >> End.RESET
    seen = pod.peer.request()
    ours = sorted(name for name, _ in seen.fields if b"headgate" in name.replace(b"_", b"-"))
    assert ours == [b"x-headgate-caller", b"x-headgate-hop", b"x-headgate-signature"]
    about = belongs_to(seen.method, seen.target, seen[b"x-request-id"], len(seen.body))
    caller = read(dict(seen.fields), KEYS, about)
    assert (caller.pod, caller.tenant, caller.cls, caller.address) == (
        "pod-0", "anonymous", "standard", "192.0.2.7"
    )  # fmt: skip


def hand_on(first: Pod, second: Pod) -> Client:
    """What the first has sent to its peer comes to the second."""
    return second.client("10.0.0.9", is_mesh=True) >> first.peer.sent()


def test_two_sidecars_serve_one_caller() -> None:
    first, second = Pod(), Pod(pod="pod-1", peers=0)
    client = first.ask(STREAM, "x-api-key: secret", "x-priority: batch")
    first.own >> End.RESET
    between = hand_on(first, second)
    seen = second.own.request()
    assert (seen.body, seen[b"via"]) == (STREAM, b"1.1 headgate, 1.1 headgate")
    assert not [name for name, _ in seen.fields if name.startswith(b"x-headgate")]
    assert second.gate.in_flight == 1, "there it is admitted"
    second.own >> SSE + chunked(ROLE, token("Hi"), DONE)
    first.peer >> between.received()
    told = client.answer(b"POST")
    assert (told.status, told.body, told.complete) == (200, ROLE + token("Hi") + DONE, True)
    assert (first.record.cls, second.record.cls) == ("batch", "batch")
    assert first.record.request_id == second.record.request_id
    first.assert_at_rest()
    second.assert_at_rest()


def test_time_that_has_passed_travels() -> None:
    first, second = Pod(), Pod(pod="pod-1", peers=0)
    first.ask(STREAM, "x-request-timeout-ms: 5000")
    first.advance(2.0)
    first.own >> End.RESET
    between = hand_on(first, second)
    second.advance(2.75)
    assert not between.has_news
    second.advance(0.5)
    assert between.answer(b"POST").reason == "timeout"


def test_a_request_makes_one_hop() -> None:
    first, second = Pod(), Pod(pod="pod-1", peers=0)
    second.hears(2)
    second.endpoint.healthy = False
    client = first.ask(b"{}")
    first.own >> End.RESET
    between = hand_on(first, second)
    assert second.went == []
    refusal = between.received()
    assert b"no_endpoint" in refusal
    first.peer >> refusal
    assert client.answer(b"POST").status == 503


def test_what_comes_back_is_a_loop() -> None:
    pod = Pod()
    pod.ask(b"{}")
    pod.own >> End.RESET
    told = hand_on(pod, pod).answer(b"POST")
    assert (told.status, told.reason) == (508, "loop")


class TestMeshClient:
    """Where peers come in."""

    def words(self, body: bytes = b"{}", keys: tuple[bytes, ...] = KEYS) -> list[str]:
        caller = Caller("pod-9", "acme", "premium", 1.0, "198.51.100.1", 0, 0, None, None)
        about = belongs_to(b"POST", CHAT.encode(), b"id-1", len(body))
        return ["x-request-id: id-1", *lines(caller, keys, about).decode().rstrip().split("\r\n")]

    def come(self, pod: Pod, *fields: str) -> Client:
        return pod.client(is_mesh=True) >> post(CHAT, b"{}", *fields)

    def test_one_who_is_introduced_is_served(self) -> None:
        pod = Pod()
        client = self.come(pod, *self.words())
        pod.own >> ok(b"fine")
        assert client.answer(b"POST").body == b"fine"
        record = pod.record
        assert (record.tenant, record.cls, record.client) == ("acme", "premium", "198.51.100.1")

    @pytest.mark.parametrize("kind", ["none", "another key", "another body", "changed"])
    def test_one_who_is_not_is_refused(self, kind: str) -> None:
        pod = Pod()
        words = {
            "none": [],
            "another key": self.words(keys=(b"another-key-of-a-mesh",)),
            "another body": self.words(b"{ }"),
            "changed": [line.replace("acme", "root") for line in self.words()],
        }[kind]
        told = self.come(pod, *words).answer(b"POST")
        assert (told.status, told.reason) == (403, "forbidden")
        assert pod.engines == []
        pod.assert_at_rest()

    def test_a_heartbeat_is_for_members(self) -> None:
        pod = Pod()
        told = (pod.client(is_mesh=True) >> get("/.headgate/heartbeat")).answer()
        assert told.reason == "forbidden"


# While the engine is down.


def test_new_work_goes_to_a_peer_and_takes_no_place_here() -> None:
    pod = Pod("admission: {max_in_flight: 1}")
    pod.endpoint.healthy = False
    clients = [pod.ask(b"{}") for _ in range(3)]
    assert (pod.gate.in_flight, pod.gate.queued, len(pod.engines)) == (0, 0, 3)
    for engine in pod.engines:
        engine >> ok(b"fine")
    assert [client.answer(b"POST").body for client in clients] == [b"fine"] * 3
    pod.assert_at_rest()


def test_who_waits_goes_to_a_peer_when_the_engine_is_lost() -> None:
    pod = Pod("admission: {max_in_flight: 1}")
    pod.ask()
    waits = pod.ask(b"{}")
    assert pod.gate.queued == 1
    pod.endpoint.healthy = False
    pod.advance(0.25)
    assert pod.gate.queued == 0
    pod.peer >> ok(b"fine")
    assert waits.answer(b"POST").body == b"fine"


def test_what_a_hung_engine_has_not_begun_moves() -> None:
    pod = Pod(keys="health: {kind: none, progress_s: 4, first_use_s: 4}")
    begun, waits = pod.ask(), pod.ask()
    pod.engines[0] >> SSE + chunked(token("Hi"), last=False)
    pod.advance(3.75)
    assert pod.went == [OWN, OWN]
    pod.advance(1.0)
    assert pod.went == [OWN, OWN, "10.0.0.1:80"]
    assert pod.engines[1].aborted
    pod.peer >> SSE + chunked(token("there"))
    assert waits.answer(b"POST").body == token("there")
    assert not begun.answer(b"POST").complete
    assert begun.is_open
    pod.engines[0] >> chunked(token("again"))
    pod.advance(0.25)
    assert not pod.endpoint.hung
    pod.assert_at_rest()
