"""Who asks, what for, and who is turned away before the body is sent."""

from hashlib import sha256

import pytest

from sidecar.exchange import DONE, FORWARDED, WAITING, Exchange
from sidecar.settings import DENY_PATHS
from tests.unit.sidecar.stages.asker import Desk, send

PROXY, CALLER = "10.0.0.1", "192.0.2.7"
ACME, BETA = (sha256(key.encode()).hexdigest() for key in ("acme-key", "beta-key"))
TENANTS = f"""
tenants:
  - {{name: acme, key_sha256: ["{ACME}"], class: premium, weight: 2}}
  - {{name: beta, key_sha256: ["{BETA}"], class: batch}}
"""
AS_ACME = "authorization: Bearer acme-key"


def wanted(x: Exchange) -> int:
    """How often its client was asked for the body."""
    return int(x.client.wanted)  # type: ignore[attr-defined]


# Tenants.


@pytest.mark.parametrize(
    "field",
    [AS_ACME, "authorization: bearer  acme-key", "x-api-key: acme-key", "api-key: acme-key"],
)
def test_a_key_belongs_to_its_tenant(field: str) -> None:
    x = Desk(TENANTS).ask(field)
    assert (x.tenant, x.cls, x.state) == ("acme", "premium", FORWARDED)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        ["authorization: Bearer other"],
        ["authorization: Bearer ACME-KEY"],
        ["authorization: Basic acme-key"],
        ["authorization: acme-key"],
        ["authorization: Bearer"],
        ["x-api-key: "],
        [f"x-api-key: {ACME}"],
        ["authorization: Bearer other", "x-api-key: acme-key"],
    ],
)
@pytest.mark.parametrize(("unknown", "reason"), [("allow", ""), ("reject", "unauthenticated")])
def test_an_unknown_key_is_everybodys_or_nobodys(fields: list[str], unknown: str, reason: str) -> None:
    rig = Desk(f"unknown_keys: {unknown}\n{TENANTS}")
    x = rig.ask(*fields)
    assert (rig.reason(x), x.tenant, x.cls) == (reason, "anonymous", "standard")


def test_anonymous_callers_can_have_a_class_of_their_own() -> None:
    assert Desk("tenants: [{name: anonymous, class: batch}]").ask(AS_ACME).cls == "batch"


def test_who_is_turned_away_is_turned_away_before_the_body_is_sent() -> None:
    rig = Desk(f"unknown_keys: reject\n{TENANTS}")
    x = rig.ask("expect: 100-continue", body=b"", length=100, complete=False)
    assert (rig.reason(x), wanted(x)) == ("unauthenticated", 0)


# Classes: the caller's word, else the first rule that matches, and the tenant's class above all.


@pytest.mark.parametrize(
    ("tenant", "said", "cls"),
    [
        ("acme-key", "premium", "premium"),
        ("acme-key", "standard", "standard"),
        ("acme-key", "Batch", "batch"),
        ("none", "premium", "standard"),
        ("none", "standard", "standard"),
        ("none", "batch", "batch"),
        ("beta-key", "premium", "batch"),
        ("none", "urgent", "standard"),
        ("acme-key", "", "premium"),
    ],
)
def test_a_caller_lowers_its_class_and_never_raises_it(tenant: str, said: str, cls: str) -> None:
    assert Desk(TENANTS).ask(f"x-api-key: {tenant}", f"x-priority: {said}").cls == cls


@pytest.mark.parametrize(
    ("tier", "cls"),
    [("priority", "premium"), ("flex", "batch"), ("auto", "premium"), ("default", "premium")],
)
def test_service_tier_is_a_word_too(tier: str, cls: str) -> None:
    body = b'{"service_tier": "%s"}' % tier.encode()
    assert Desk(TENANTS).ask(AS_ACME, body=body).cls == cls


def test_a_tier_does_not_raise_and_the_header_goes_before_it() -> None:
    rig = Desk(TENANTS)
    assert rig.ask(body=b'{"service_tier": "priority"}').cls == "standard"
    assert rig.ask(AS_ACME, "x-priority: standard", body=b'{"service_tier": "flex"}').cls == "standard"


RULES = f"""
class_rules:
  - {{class: batch, route: /v1/embeddings}}
  - {{class: standard, model: big}}
  - {{class: batch, header: {{X-Job: nightly, x-team: search}}}}
  - {{class: standard, key_sha256: ["{ACME.upper()}"], route: /v1/completions}}
  - {{class: batch, key_sha256: ["{ACME}"], route: /v1/completions}}
"""


@pytest.mark.parametrize(
    ("target", "fields", "body", "cls"),
    [
        ("/v1/embeddings", [], b"{}", "batch"),
        ("/v1/embeddings/", [], b'{"model": "big"}', "batch"),
        ("/v1/chat/completions", [], b'{"model": "big"}', "standard"),
        ("/v1/chat/completions", [], b'{"model": "bigger"}', "premium"),
        ("/v1/chat/completions", ["x-job: nightly", "x-team: search"], b"{}", "batch"),
        ("/v1/chat/completions", ["x-job: nightly"], b"{}", "premium"),
        ("/v1/chat/completions", ["x-job: daily", "x-team: search"], b"{}", "premium"),
        ("/v1/completions", [], b"{}", "standard"),
        ("/v1/chat/completions", [], b"not json", "premium"),
    ],
)
def test_rules_speak_for_callers_that_say_nothing(
    target: str, fields: list[str], body: bytes, cls: str
) -> None:
    assert Desk(TENANTS + RULES).ask(AS_ACME, *fields, target=target, body=body).cls == cls


def test_the_callers_word_goes_before_a_rule_and_nonsense_is_no_word() -> None:
    rig = Desk(TENANTS + RULES)
    assert rig.ask(AS_ACME, "x-priority: standard", target="/v1/embeddings").cls == "standard"
    assert rig.ask(AS_ACME, "x-priority: urgent", target="/v1/embeddings").cls == "batch"


@pytest.mark.parametrize("tier", ["default", "auto"])
def test_a_caller_that_asks_for_its_own_class_is_not_ruled(tier: str) -> None:
    body = b'{"service_tier": "%s"}' % tier.encode()
    rig = Desk(TENANTS + RULES)
    assert rig.ask(AS_ACME, target="/v1/embeddings", body=body).cls == "premium"
    assert rig.ask("x-api-key: beta-key", body=body).cls == "batch"


@pytest.mark.parametrize("word", ["urgent", "own", "Ä"])
def test_behind_a_priority_that_is_none_the_tier_is_heard(word: str) -> None:
    rig = Desk(TENANTS + RULES)
    for tier, cls in ((b"flex", "batch"), (b"priority", "premium"), (b"default", "premium")):
        body = b'{"service_tier": "%b", "model": "big"}' % tier
        assert rig.ask(AS_ACME, f"x-priority: {word}", body=body).cls == cls
    assert rig.ask(AS_ACME, f"x-priority: {word}", body=b'{"model": "big"}').cls == "standard"


def test_a_rule_for_a_key_is_about_that_key() -> None:
    rig = Desk(f'class_rules: [{{class: batch, key_sha256: ["{ACME}"]}}]')
    assert [rig.ask(*fields).cls for fields in ([AS_ACME], ["api-key: other"], [])] == [
        "batch", "standard", "standard",
    ]  # fmt: skip


def test_a_rule_does_not_raise_either() -> None:
    rig = Desk(f"{TENANTS}\nclass_rules: [{{class: premium, route: /v1}}]")
    assert [rig.ask(f"api-key: {key}").cls for key in ("acme-key", "none", "beta-key")] == [
        "premium", "standard", "batch",
    ]  # fmt: skip


def test_work_whose_body_is_not_read_has_a_class_too() -> None:
    rig = Desk("class_rules: [{class: batch, route: /v1/audio}]")
    assert rig.ask(target="/v1/audio/speech").cls == "batch"
    assert rig.ask("x-priority: batch", target="/generate").cls == "batch"


# What is not for callers.


@pytest.mark.parametrize("path", DENY_PATHS)
def test_an_engines_own_administration_is_closed(path: str) -> None:
    rig = Desk()
    for method in ("GET", "POST", "PUT"):
        for target in (path, f"{path}?a=b", f"{path}/", f"{path}/deeper", f"/{path}", f"http://h{path}"):
            assert rig.reason(rig.ask(method=method, target=target)) == "forbidden"


@pytest.mark.parametrize(
    "target", ["/%73leep", "/x/../sleep", "/./sleep", "//sleep//", "/x%2f..%2fsleep", "/sleep?/x"]
)
def test_no_spelling_opens_it(target: str) -> None:
    rig = Desk()
    assert rig.reason(rig.ask(target=target)) == "forbidden"


@pytest.mark.parametrize("target", ["/sleepy", "/v1/sleep", "/Sleep", "/?/sleep", "/v1/models"])
def test_neighbours_stay_open(target: str) -> None:
    rig = Desk()
    assert rig.reason(rig.ask(method="GET", target=target)) == ""


def test_the_closed_paths_can_be_chosen() -> None:
    rig = Desk(engine=", deny_paths: [/v1/files/]")
    found = [rig.reason(rig.ask(target=target)) for target in ("/v1/files", "/v1/files/1", "/sleep")]
    assert found == ["forbidden", "forbidden", ""]


@pytest.mark.parametrize(
    ("method", "target"), [("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("POST", "/sleep")]
)
def test_a_pod_that_goes_away_takes_nothing_new(method: str, target: str) -> None:
    rig = Desk("unknown_keys: reject")
    rig.lifecycle.draining = True
    x = rig.ask(method=method, target=target)
    assert (rig.reason(x), x.path) == ("draining", target)
    assert rig.answers[x].retry_after_s == 1.2


@pytest.mark.parametrize("target", ["/v1/chat/completions", "/v1/files"])
def test_while_the_loop_lags_new_work_is_sent_elsewhere_at_once(target: str) -> None:
    rig = Desk()
    before = rig.ask(complete=False, length=None)
    rig.lifecycle.tick(now=10.0, due=8.5, every=0.05)
    x = rig.ask(target=target, body=b"", length=2, complete=False)
    assert (rig.reason(x), x.path, wanted(x)) == ("overloaded", target, 0)
    assert rig.answers[x].retry_after_s == 1.2
    for method, query in (("GET", "/v1/models"), ("HEAD", "/health"), ("POST", "/tokenize")):
        assert rig.ask(method=method, target=query).state == FORWARDED
    send(before, b"", complete=True)
    assert before.state == FORWARDED, "it was not new"
    for _ in range(11):  # half a second, and the sum of it is below one
        rig.lifecycle.tick(now=10.0, due=10.0, every=0.05)
    assert rig.ask(target=target).state == FORWARDED


@pytest.mark.parametrize("expect", ["200-ok", "100-continue, x", ""])
def test_another_expectation_is_not_met(expect: str) -> None:
    rig = Desk()
    assert rig.reason(rig.ask(f"expect: {expect}", complete=False)) == "expectation"


# Bodies.


def test_a_body_that_is_here_is_read() -> None:
    rig = Desk()
    rig.catalog.load(b'{"data": [{"id": "llama"}]}')
    body = b'{"model": "llama", "stream": true, "max_tokens": 7}'
    x = rig.ask(body=body)
    assert (x.body, x.model, x.stream, x.max_tokens) == (body, "llama", True, 7)
    assert rig.ask(body=b'{"model": "unheard-of"}').model == "other"


def test_a_body_that_is_still_coming_is_waited_for() -> None:
    rig = Desk(TENANTS)
    x = rig.ask(AS_ACME, body=b'{"service_tier":', length=None, complete=False)
    assert (x.state, wanted(x)) == (WAITING, 1)
    send(x, b' "fl', complete=False)
    assert x.state == WAITING
    send(x, b'ex"}', complete=True)
    assert (x.state, x.body, x.cls, wanted(x)) == (FORWARDED, b'{"service_tier": "flex"}', "batch", 1)
    assert x.when_body is None


def test_a_body_that_streams_through_is_asked_for_and_not_touched() -> None:
    x = Desk().ask(target="/v1/audio/transcriptions", body=b"RIFF", length=100, complete=False)
    assert (x.state, wanted(x), x.body, x.request.chunks) == (FORWARDED, 1, None, [b"RIFF"])


def test_a_request_that_is_whole_is_asked_for_nothing() -> None:
    rig = Desk()
    assert [wanted(rig.ask()), wanted(rig.ask(method="GET", target="/v1/models", body=b""))] == [0, 0]


def test_a_body_that_says_it_is_too_large_is_not_asked_for() -> None:
    rig = Desk("max_body_bytes: 1024")
    x = rig.ask(body=b"", length=1025, complete=False)
    assert (rig.reason(x), wanted(x)) == ("body_too_large", 0)
    assert rig.answers[x].message == "The body may have 1024 bytes."
    assert rig.reason(rig.ask(body=b"x" * 1024)) == ""


def test_a_body_that_grows_too_large_is_refused_when_it_does() -> None:
    rig = Desk("max_body_bytes: 1024")
    x = rig.ask(body=b"x" * 1024, length=None, complete=False)
    assert x.state == WAITING
    send(x, b"x", complete=False)
    assert (rig.reason(x), x.state) == ("body_too_large", DONE)
    send(x, b"x", complete=True)
    assert x.body is None
    assert rig.reason(rig.ask(body=b"x" * 1025, length=None)) == "body_too_large"


def test_only_a_body_that_is_held_has_a_largest_size() -> None:
    rig = Desk("max_body_bytes: 1024")
    assert rig.reason(rig.ask(target="/v1/files", body=b"", length=10**9, complete=False)) == ""


def test_the_body_of_one_who_left_is_not_read() -> None:
    rig = Desk()
    x = rig.ask(body=b"{", length=None, complete=False)
    x.pipeline.complete(x)
    send(x, b"}", complete=True)
    assert (x.state, x.body, rig.forwarded) == (DONE, None, [])


# How long, how often, from where.


def test_the_deadline_counts_from_the_arrival_here() -> None:
    rig = Desk()
    now = rig.clock.now()
    for fields, deadline, last_byte_by in (
        ([], None, None),
        (["x-request-timeout-ms: 2500"], now + 2.5, now + 2.5),
        (["x-stainless-read-timeout: 4"], now + 4.0, None),
        (["x-request-timeout-ms: 2500", "x-stainless-read-timeout: 2"], now + 2.0, now + 2.5),
    ):
        x = rig.ask(*fields)
        assert (x.deadline, x.last_byte_by) == (deadline, last_byte_by)


def test_only_a_trusted_proxy_says_when_a_request_started() -> None:
    rig = Desk("trusted_proxies: [10.0.0.0/8]")
    fields = ("x-request-timeout-ms: 5000", f"x-request-start: t={rig.clock.wall() - 3:.3f}")
    for peer, left in ((PROXY, 2.0), (CALLER, 5.0)):
        x = rig.ask(*fields, peer=peer)
        assert x.deadline == x.last_byte_by == pytest.approx(rig.clock.now() + left)


@pytest.mark.parametrize(
    ("count", "repeat"),
    [("0", 0), ("2", 2), ("", 0), ("-1", 0), ("1.5", 0), ("many", 0), ("101", 100), ("9" * 400, 100)],
)
def test_a_repeat_is_counted(count: str, repeat: int) -> None:
    assert Desk().ask(f"x-stainless-retry-count: {count}").repeat == repeat


@pytest.mark.parametrize(
    ("peer", "fields", "client_ip"),
    [
        (CALLER, [], CALLER),
        (CALLER, ["x-forwarded-for: 198.51.100.1"], CALLER),
        (PROXY, [], PROXY),
        (PROXY, ["x-forwarded-for: 198.51.100.1"], "198.51.100.1"),
        (PROXY, ["x-forwarded-for: 203.0.113.9, 198.51.100.1"], "198.51.100.1"),
        (PROXY, ["x-forwarded-for: 203.0.113.9, 198.51.100.1, 10.9.9.9"], "198.51.100.1"),
        # A proxy may append a field of its own: the last word is the trusted one's.
        (PROXY, ["x-forwarded-for: 203.0.113.9", "x-forwarded-for: 198.51.100.1"], "198.51.100.1"),
    ],
)
def test_a_callers_address_is_believed_from_trusted_proxies_alone(
    peer: str, fields: list[str], client_ip: str
) -> None:
    assert Desk("trusted_proxies: [10.0.0.0/8]").ask(*fields, peer=peer).client_ip == client_ip


# What is work.


@pytest.mark.parametrize(
    ("method", "target", "is_work", "is_openai"),
    [
        ("POST", "/v1/chat/completions", True, True),
        ("GET", "/v1/models", False, True),
        ("GET", "/health", False, False),
        ("POST", "/tokenize", False, False),
        ("POST", "/generate", True, False),
    ],
)
def test_what_is_work(method: str, target: str, is_work: bool, is_openai: bool) -> None:
    x = Desk().ask(method=method, target=target)
    assert (x.is_work, x.is_openai, x.path) == (is_work, is_openai, target)


def test_what_is_remembered_of_targets_is_bounded_and_stays_right() -> None:
    rig = Desk()
    for i in range(3000):
        assert rig.ask(method="GET", target=f"/{i}").path == f"/{i}"
    stage = rig.pipeline._enter[0].__self__  # type: ignore[attr-defined]
    assert len(stage._routes) <= 1024
    assert rig.reason(rig.ask(target="/sleep?" + "x" * 10_000)) == "forbidden"
    assert rig.reason(rig.ask(target="/sleep")) == "forbidden"
    assert rig.ask(method="GET", target="/1").path == "/1"
    assert not rig.ask(method="GET").is_work, "the method is remembered with the target"
    assert rig.ask().is_work


# The engine's metrics page.

PAGE = b'vllm:num_requests_waiting{engine="0"} 2.0\n'
TEXT = b"text/plain; version=0.0.4"


def shown(desk: Desk, *fields: str, target: str = "/metrics", method: str = "GET") -> bytes | None:
    """What is answered for the engine; None when it is asked."""
    x = desk.ask(*fields, method=method, target=target, body=b"")
    return None if x in desk.forwarded else desk.answers[x].body


def test_the_engines_page_is_answered_with_our_queue_in_it_while_it_is_fresh() -> None:
    desk = Desk(engine=", metrics: {interval_s: 2}")
    assert shown(desk) is None
    desk.page.take(PAGE, TEXT, desk.clock.now())
    desk.queued = 5
    for target in ("/metrics", "/metrics?x=1", "/metrics/"):
        assert shown(desk, target=target) == PAGE.replace(b"2.0", b"7.0")
    (*_, reply) = desk.answers.values()
    assert (reply.refusal.status, reply.refusal.reason, reply.content_type) == (200, "", TEXT)
    desk.pass_time(6.0)
    assert shown(desk) is not None
    desk.pass_time(0.125)
    assert shown(desk) is None


@pytest.mark.parametrize(
    ("method", "target"), [("POST", "/metrics"), ("HEAD", "/metrics"), ("GET", "/metricsx")]
)
def test_nothing_else_is(method: str, target: str) -> None:
    desk = Desk()
    desk.page.take(PAGE, TEXT, desk.clock.now())
    assert shown(desk, method=method, target=target) is None


def test_the_page_is_where_the_engine_has_it() -> None:
    desk = Desk(engine=", metrics: {path: /prometheus/metrics}")
    desk.page.take(PAGE, TEXT, desk.clock.now())
    assert shown(desk) is None
    assert shown(desk, target="/prometheus/metrics") == PAGE


def test_the_page_can_be_left_to_the_engine() -> None:
    desk = Desk(engine=", metrics: {reexport: false}")
    desk.page.take(PAGE, TEXT, desk.clock.now())
    assert shown(desk) is None


def test_the_page_is_for_those_who_may_ask() -> None:
    desk = Desk("unknown_keys: reject")
    desk.page.take(PAGE, TEXT, desk.clock.now())
    assert desk.reason(desk.ask(method="GET", target="/metrics", body=b"")) == "unauthenticated"
    desk = Desk(engine=", metrics: {}, deny_paths: [/metrics]")
    desk.page.take(PAGE, TEXT, desk.clock.now())
    assert desk.reason(desk.ask(method="GET", target="/metrics", body=b"")) == "forbidden"
