"""Requests that pass, and as what they reach the engine: rebuilt from their parts, never copied.

What rule_NN says is in `test_http1_rules`.
"""

from typing import NamedTuple

import pytest

from sidecar.http1.request import MAX_FIELDS, MAX_TARGET_BYTES
from tests.conformance.messages import TRUSTING, names, raw
from tests.harness.engine import answer, ok
from tests.harness.wire import CHAT, Wire, get, post, read_answer

ID = "0" * 31 + "1"
# What every request without a body has when it reaches the engine.
OURS = {b"host", b"via", b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"x-request-id"}


# The request line and Host.


class Targeted(NamedTuple):
    name: str
    sent: bytes
    target: bytes
    host: bytes = b"a"


LONGEST = "/" + "a" * (MAX_TARGET_BYTES - 1)

TARGETED = [
    Targeted("rule_06: the root", get("/"), b"/"),
    Targeted("rule_06: nothing is tidied up", get("//a/../b?c=d%20/?e&"), b"//a/../b?c=d%20/?e&"),
    Targeted("rule_06: nor decoded", get("/%2e%2E/%41?%zz=\"<>[]\\^`{|}"), b"/%2e%2E/%41?%zz=\"<>[]\\^`{|}"),
    Targeted("rule_06: an empty path of GET", get("http://b"), b"/", b"b"),
    Targeted("rule_06: an empty path with a query", get("http://b?c"), b"/?c", b"b"),
    Targeted("rule_06: an empty path of OPTIONS", get("http://b:1", method="OPTIONS"), b"*", b"b:1"),
    Targeted("rule_06: a root of OPTIONS", get("http://b/", method="OPTIONS"), b"/", b"b"),
    Targeted("rule_06: a query of OPTIONS", get("http://b?c", method="OPTIONS"), b"/?c", b"b"),
    Targeted("rule_13: an empty line before", b"\r\n" + get("/a"), b"/a"),
    Targeted("rule_13: empty lines before", b"\r\n\r\n\r\n" + get("/a"), b"/a"),
    Targeted("rule_15: the longest target", get(LONGEST), LONGEST.encode()),
    Targeted("rule_16: * of OPTIONS", get("*", method="OPTIONS"), b"*"),
    Targeted("rule_16: an absolute target replaces host", get("http://b:1/c?d"), b"/c?d", b"b:1"),
    Targeted("rule_16: as it does in 1.0", raw("GET http://b/c HTTP/1.0"), b"/c", b"b"),
    Targeted("rule_16: https, in capitals", get("HTTPS://B/c"), b"/c", b"B"),
    Targeted("rule_16: an IPv6 address", raw("GET / HTTP/1.1", "HOST:\t[::1]:80 "), b"/", b"[::1]:80"),
    Targeted("rule_16: a port of nothing", raw("GET / HTTP/1.1", "host: a:"), b"/", b"a:"),
    Targeted("rule_16: an empty host", raw("GET / HTTP/1.1", "host:"), b"/", b""),
    Targeted("rule_16: no host in 1.0", raw("GET / HTTP/1.0"), b"/", b""),
]  # fmt: skip


@pytest.mark.parametrize("case", TARGETED, ids=lambda case: case.name)
def test_targets_and_host(case: Targeted) -> None:
    wire = Wire()
    wire.client() >> case.sent
    seen = wire.engine.request()
    assert (seen.target, seen[b"host"]) == (case.target, case.host)
    assert seen.complete


METHODS = ["get", "head", "trace", "FETCH", "QUERY", "PROPFIND", "M-SEARCH", "!#$%&'*+-.^_`|~09aZ", "M" * 32]


@pytest.mark.parametrize("method", METHODS)
def test_rule_15_a_method_is_any_token(method: str) -> None:
    """RFC 9110 section 9.1: case counts, and whether it is known is the engine's business."""
    wire = Wire()
    client = wire.client() >> get("/", method=method)
    assert wire.engine.request().method == method.encode()
    wire.engine >> ok(b"body")
    assert client.answer(method.encode()).body == b"body"
    assert client.is_open


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_rule_14_the_version_is_ours(version: str) -> None:
    wire = Wire()
    wire.client() >> get("/a", version=version)
    assert wire.engine.sent().startswith(b"GET /a HTTP/1.1\r\n")


class Hops(NamedTuple):
    given: str
    passed: bytes


@pytest.mark.parametrize("case", [Hops("1", b"0"), Hops("10", b"9"), Hops("007", b"6"), Hops("1000", b"999")])
@pytest.mark.parametrize("target", ["/", "*"])
def test_rule_03_max_forwards_counts_down(target: str, case: Hops) -> None:
    wire = Wire()
    wire.client() >> get(target, f"Max-Forwards: {case.given}", "a: b", method="OPTIONS")
    seen = wire.engine.request()
    assert seen[b"max-forwards"] == case.passed
    assert seen[b"a"] == b"b"


@pytest.mark.parametrize("target", ["/", "*", "http://a", CHAT])
@pytest.mark.parametrize("zero", ["0", "00"])
def test_rule_03_max_forwards_ends_here(target: str, zero: str) -> None:
    wire = Wire()
    client = wire.client() >> get(target, f"max-forwards: {zero}", method="OPTIONS") + get("/next")
    back = client.answer(b"OPTIONS")
    assert (back.status, back[b"content-length"], back.body, back.reason) == (200, b"0", b"", "")
    assert b"date" in back
    assert wire.engine.request().target == b"/next"
    wire.engine >> ok()
    assert client.is_open
    wire.assert_at_rest()


@pytest.mark.parametrize("value", ["0", "5", "x"])
def test_rule_03_max_forwards_is_for_options_alone(value: str) -> None:
    wire = Wire()
    wire.client() >> get("/", f"max-forwards: {value}")
    assert wire.engine.request()[b"max-forwards"] == value.encode()


# Fields.


def test_fields_pass_in_order_with_their_repeats() -> None:
    wire = Wire()
    wire.client() >> get("/", "B: 1", "a:  x\ty \t", "b: 2", "accept: é", "empty:")
    assert wire.engine.request().fields[1:-5] == [
        (b"b", b"1"), (b"a", b"x\ty"), (b"b", b"2"), (b"accept", b"\xe9"), (b"empty", b""),
    ]  # fmt: skip


def test_rule_28_as_many_fields_as_are_allowed_pass() -> None:
    wire = Wire()
    wire.client() >> get("/", *["a: " + "b" * 600] * (MAX_FIELDS - 1))
    assert len(wire.engine.request().fields) == MAX_FIELDS - 1 + len(OURS)


HOP = ["keep-alive: timeout=5", "proxy-connection: x", "te: trailers", "trailer: x", "x-hop: 1"]


def test_rule_01_hop_by_hop_fields_end_here_both_ways() -> None:
    wire = Wire()
    connection = "connection: keep-alive, X-Hop, host, content-length, authorization"
    client = wire.client() >> post("/", b"abc", connection, "authorization: Bearer k", *HOP)
    seen = wire.engine.request()
    assert {name for name, _ in seen.fields} == OURS | {b"authorization", b"content-length"}
    assert seen.body == b"abc"
    named = b"connection: x-hop, content-length"
    wire.engine >> ok(b"x", named, b"x-hop: 1", b"keep-alive: x", b"a: b", b"date: c")
    back = client.answer(b"POST")
    assert {name for name, _ in back.fields} == {
        b"a", b"content-length", b"date", b"via", b"x-request-id", b"server-timing",
            b"endpoint-load-metrics",
    }  # fmt: skip


def test_rule_01_every_line_of_connection_counts() -> None:
    wire = Wire()
    hop = ["connection: keep-alive", "x-one: 1", "connection: x-one, x-two", "x-two: 2"]
    client = wire.client() >> get("/", *hop)
    assert names(wire) == OURS
    back = [line.encode() for line in hop]
    wire.engine >> answer(b"103 E", b"", *back, b"link: x") + ok(b"", *back)
    came = client.answer()
    assert came.interim == [(103, [(b"link", b"x")])]
    assert {b"x-one", b"x-two", b"connection"}.isdisjoint({name for name, _ in came.fields})


@pytest.mark.parametrize("listed", ["X_Hop", "x-hop, x_hop", "x_hop , close"])
def test_rule_01_a_name_with_an_underscore_can_be_named_too(listed: str) -> None:
    wire = Wire()
    client = wire.client() >> get("/", f"connection: {listed}", "x_hop: 1")
    assert names(wire) == OURS
    wire.engine >> ok(b"", b"connection: " + listed.encode(), b"x_hop: 1")
    assert b"x_hop" not in client.answer()


def test_rule_02_te_is_not_offered_on() -> None:
    """Trailers end here, so the engine must not be told that somebody wants them."""
    wire = Wire()
    wire.client() >> get("/", "te: trailers, gzip;q=0.5", "connection: te")
    assert names(wire) == OURS


def test_rule_04_via_is_appended_both_ways() -> None:
    wire = Wire()
    client = wire.client() >> get("/", "via: 1.0 one", "via: 1.1 two")
    assert wire.engine.request()[b"via"] == b"1.0 one, 1.1 two, 1.1 headgate"
    wire.engine >> ok(b"", b"via: 1.1 vllm")
    assert client.answer()[b"via"] == b"1.1 vllm, 1.1 headgate"


def test_rule_04_via_names_the_version_in_which_a_message_came() -> None:
    """RFC 9110 section 7.6.3: received-protocol is what the sender spoke, not what we speak."""
    wire = Wire()
    client = wire.client() >> get(version="1.0")
    assert wire.engine.request()[b"via"] == b"1.0 headgate"
    wire.engine >> ok()
    assert client.answer()[b"via"] == b"1.1 headgate"
    client = wire.client() >> get()
    assert wire.engine.request()[b"via"] == b"1.1 headgate"
    wire.engine >> ok().replace(b"HTTP/1.1", b"HTTP/1.0")
    assert client.answer()[b"via"] == b"1.0 headgate"


def test_rule_05_a_request_that_comes_back_is_a_loop() -> None:
    """Its engine is, by mistake, this sidecar: what it sends comes in as a request, again and again."""
    wire = Wire()
    sent = get()
    for _ in range(4):
        wire = Wire()
        client = wire.client() >> sent
        if not wire.engines:
            break
        sent = wire.engine.sent()
    refusal, _ = read_answer(client.received(), ended=client.is_over)
    assert (refusal.status, refusal.reason) == (508, "loop")


def test_rule_06_content_is_not_transformed() -> None:
    wire = Wire()
    body = b'\x1f\x8b {"model" : "m", "a": 1.0, "a": 2}\r\n\r\n'
    client = wire.client() >> post(CHAT, body, "cache-control: no-transform", "content-encoding: gzip")
    seen = wire.engine.request()
    assert (seen.body, seen[b"content-encoding"]) == (body, b"gzip")
    wire.engine >> ok(body, b"content-encoding: gzip", b"content-type: x", b'etag: "y"')
    back = client.answer(b"POST")
    assert (back.body, back[b"content-encoding"], back[b"etag"]) == (body, b"gzip", b'"y"')


def test_rule_07_an_upgrade_without_connection_is_a_field_that_ends_here() -> None:
    wire = Wire()
    wire.client() >> get("/", "upgrade: websocket")
    assert names(wire) == OURS


def test_rule_07_an_upgrade_in_1_0_is_ignored() -> None:
    wire = Wire()
    wire.client() >> get("/", "connection: upgrade", "upgrade: websocket", version="1.0")
    assert names(wire) == OURS


@pytest.mark.parametrize("offer", ["h2c", "H2C", "h2c, websocket"])
def test_rule_07_the_offer_of_h2c_is_ignored(offer: str) -> None:
    wire = Wire()
    offered = ("connection: Upgrade, HTTP2-Settings", f"upgrade: {offer}", "http2-settings: AAMA")
    client = wire.client() >> get("/1", *offered) + get("/2")
    for target in (b"/1", b"/2"):
        seen = wire.engine.request()
        assert seen.target == target
        assert {name for name, _ in seen.fields} == OURS
        wire.engine >> ok()
        assert client.answer().status == 200


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_rule_07_the_offer_of_h2c_with_a_body_is_ignored(path: str) -> None:
    """As curl --http2 makes it for a POST; what follows is HTTP/1.1 as before."""
    wire = Wire()
    offer = ("connection: upgrade, http2-settings", "upgrade: h2c", "http2-settings: AAMA")
    client = wire.client() >> post(path, b"{}", *offer) + get("/2")
    seen = wire.engine.request()
    assert seen.body == b"{}"
    assert b"upgrade" not in seen
    wire.engine >> ok()
    assert client.answer(b"POST").status == 200
    assert wire.engine.request().target == b"/2"


SHADOWS = ["x_headgate_hop", "X_Forwarded_For", "x-forwarded_proto", "content_length", "proxy_connection"]


def test_rule_27_names_that_frameworks_would_read_as_ours_do_not_pass() -> None:
    """WSGI and CGI read "_" as "-": the engine would take the caller's word for the sidecar's."""
    wire = Wire()
    wire.client() >> get("/", *(f"{name}: 1" for name in SHADOWS), "user_id: 7", "x_headgateway: 8", "te_: 9")
    seen = wire.engine.request()
    assert [name for name, _ in seen.fields if b"_" in name] == [b"user_id", b"x_headgateway", b"te_"]
    assert seen[b"x-forwarded-for"] == b"192.0.2.7"


def test_rule_27_nor_is_one_of_them_framing() -> None:
    wire = Wire()
    wire.client() >> get("/1", "content_length: 5", "transfer_encoding: chunked", method="POST") + get("/2")
    seen = wire.engine.request()
    assert (seen.body, seen.complete) == (b"", True)
    wire.engine >> ok()
    assert wire.engine.request().target == b"/2"


@pytest.mark.parametrize("length", ["3", "03", "3 ", "\t3"])
def test_rule_21_a_length_is_digits(length: str) -> None:
    wire = Wire()
    wire.client() >> get("/", f"content-length:{length}", method="POST") + b"abc" + get("/next")
    seen = wire.engine.request()
    assert (seen.body, seen[b"content-length"]) == (b"abc", b"3")


# Who says what about the caller.


class Forwarded(NamedTuple):
    name: str
    config: str
    sent: tuple[str, ...]
    arrives: tuple[bytes, bytes, bytes]  # -for, -proto, -host


CLAIMS = ("x-forwarded-for: 203.0.113.9", "x-forwarded-proto: https", "x-forwarded-host: api.ex")


@pytest.mark.parametrize(
    "case",
    [
        Forwarded("nothing said", "", (), (b"192.0.2.7", b"http", b"a")),
        Forwarded("claims of anybody", "", CLAIMS, (b"192.0.2.7", b"http", b"a")),
        Forwarded("claims of a proxy", TRUSTING, CLAIMS, (b"203.0.113.9, 192.0.2.7", b"https", b"api.ex")),
        Forwarded("a silent proxy", TRUSTING, (), (b"192.0.2.7", b"http", b"a")),
        Forwarded(
            "two lines",
            TRUSTING,
            ("x-forwarded-for: 1.1.1.1", "x-forwarded-for: 2.2.2.2"),
            (b"1.1.1.1, 2.2.2.2, 192.0.2.7", b"http", b"a"),
        ),
    ],
    ids=lambda case: case.name,
)
def test_forwarded(case: Forwarded) -> None:
    wire = Wire(case.config)
    wire.client() >> get("/", *case.sent)
    seen = wire.engine.request()
    found = seen[b"x-forwarded-for"], seen[b"x-forwarded-proto"], seen[b"x-forwarded-host"]
    assert found == case.arrives


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-1", "abc-1"),
        ("a" * 128, "a" * 128),
        ("a" * 129, ID),
        ("", ID),
        ("a b", ID),
        ('"', ID),
        ("-", ID),
        ("\xe9", ID),
    ],
)
def test_a_request_id_is_kept_or_made(given: str, kept: str) -> None:
    wire = Wire()
    client = wire.client() >> get("/", f"x-request-id: {given}")
    assert wire.engine.request()[b"x-request-id"].decode() == kept
    wire.engine >> ok(b"", b"x-request-id: engines-own")
    assert client.answer()[b"x-request-id"].decode() == kept


def test_nobody_sets_what_is_the_meshs_to_set() -> None:
    wire = Wire()
    client = wire.client() >> get("/", "X-Headgate-Hop: 1", "x-headgate-elapsed-ms: 9")
    assert not any(name.startswith(b"x-headgate") for name, _ in wire.engine.request().fields)
    wire.engine >> ok(b"", b"x-headgate-reason: overloaded")
    assert client.answer().reason == ""


@pytest.mark.parametrize(("config", "passes"), [("", False), (TRUSTING, True)])
def test_the_words_of_a_proxy_pass_from_a_proxy_alone(config: str, passes: bool) -> None:
    wire = Wire(config)
    wire.client() >> get("/", "Forwarded: for=a", "x-real-ip: b", "x-request-start: t=1", "x_real_ip: c")
    words = {b"forwarded", b"x-real-ip", b"x-request-start"}
    found = names(wire)
    assert b"x_real_ip" not in found
    assert found >= words if passes else found.isdisjoint(words)
