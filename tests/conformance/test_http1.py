"""HTTP/1.1 as an intermediary has to speak it (RFC 9110, RFC 9112), case by case, strict choices."""

import json
from typing import NamedTuple

import pytest

from sidecar.http1.request import MAX_FIELDS, MAX_HEAD_BYTES, MAX_TARGET_BYTES
from tests.harness.engine import answer, ok
from tests.harness.wire import CHAT, Wire, get, post, post_chunked

TRUSTING = "trusted_proxies: [192.0.2.0/24]"
CHUNKED = b"transfer-encoding: chunked"
ID = "0" * 31 + "1"


def raw(*lines: str, body: str = "") -> bytes:
    return ("".join(f"{line}\r\n" for line in lines) + "\r\n" + body).encode("latin-1")


# Requests that are refused, with the connection.


class Refused(NamedTuple):
    name: str
    sent: bytes
    status: int
    reason: str


MALFORMED = 400, "malformed"
UNKNOWN = 501, "not_implemented"
LONGEST = "a" * MAX_TARGET_BYTES

REFUSED = [
    Refused("no host", raw("GET / HTTP/1.1"), *MALFORMED),
    Refused("two hosts", get("/", "host: a"), *MALFORMED),
    Refused("a list of hosts", raw("GET / HTTP/1.1", "host: a, b"), *MALFORMED),
    Refused("host with a path", raw("GET / HTTP/1.1", "host: a/b"), *MALFORMED),
    Refused("host with a user", raw("GET / HTTP/1.1", "host: u@a"), *MALFORMED),
    Refused("host with a space", raw("GET / HTTP/1.1", "host: a b"), *MALFORMED),
    Refused("content-length beside chunked", get("/", "content-length: 3", CHUNKED.decode()), *MALFORMED),
    Refused("chunked beside content-length", get("/", CHUNKED.decode(), "content-length: 3"), *MALFORMED),
    Refused("content-length repeated", get("/", "content-length: 1", "content-length: 1"), *MALFORMED),
    Refused("content-lengths that differ", get("/", "content-length: 1", "content-length: 2"), *MALFORMED),
    Refused("content-length as a list", get("/", "content-length: 1, 1"), *MALFORMED),
    Refused("content-length with a sign", get("/", "content-length: +1"), *MALFORMED),
    Refused("content-length below 0", get("/", "content-length: -1"), *MALFORMED),
    Refused("content-length in hex", get("/", "content-length: 0x1"), *MALFORMED),
    Refused("content-length with _", get("/", "content-length: 1_0"), *MALFORMED),
    Refused("content-length with a space", get("/", "content-length: 1 1"), *MALFORMED),
    Refused("content-length empty", get("/", "content-length:"), *MALFORMED),
    Refused("content-length too large", get("/", f"content-length: {2**64}"), *MALFORMED),
    Refused("chunked twice", get("/", "transfer-encoding: chunked, chunked"), *MALFORMED),
    Refused("chunked repeated", get("/", CHUNKED.decode(), CHUNKED.decode()), *MALFORMED),
    Refused("gzip", get("/", "transfer-encoding: gzip"), *UNKNOWN),
    Refused("gzip, chunked", get("/", "transfer-encoding: gzip, chunked"), *UNKNOWN),
    Refused("chunked, gzip", get("/", "transfer-encoding: chunked, gzip"), *MALFORMED),
    Refused("xchunked", get("/", "transfer-encoding: xchunked"), *UNKNOWN),
    Refused("identity", get("/", "transfer-encoding: identity"), *UNKNOWN),
    Refused("chunked in 1.0", get("/", CHUNKED.decode(), version="1.0"), *MALFORMED),
    Refused("obs-fold", get("/", "a: b", " c"), *MALFORMED),
    Refused("obs-fold in the first field", raw("GET / HTTP/1.1", " a: b", "host: a"), *MALFORMED),
    Refused("bare LF", get().replace(b"\r\n", b"\n"), *MALFORMED),
    Refused("bare LF in the head", get("/", "a: b\nc: d"), *MALFORMED),
    Refused("bare LF at its end", get()[:-2] + b"\n", *MALFORMED),
    Refused("bare CR in a value", get("/", "a: b\rc: d"), *MALFORMED),
    Refused("bare CR in the request line", b"GET /\rx HTTP/1.1\r\nhost: a\r\n\r\n", *MALFORMED),
    Refused("NUL in a value", get("/", "a: b\0"), *MALFORMED),
    Refused("NUL in a name", get("/", "a\0: b"), *MALFORMED),
    Refused("a control in a value", get("/", "a: b\x07"), *MALFORMED),
    Refused("space before the colon", get("/", "a : b"), *MALFORMED),
    Refused("no name", get("/", ": b"), *MALFORMED),
    Refused("no colon", get("/", "a"), *MALFORMED),
    Refused("an invalid name", get("/", "a(b): c"), *MALFORMED),
    Refused("no version", b"GET /\r\n\r\n", 505, "version"),
    Refused("HTTP/0.9", get(version="0.9"), 505, "version"),
    Refused("HTTP/1.2", get(version="1.2"), 505, "version"),
    Refused("HTTP/2.0", get(version="2.0"), 505, "version"),
    Refused("HTTP/2 begun without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    Refused("a version that is none", get(version="x"), *MALFORMED),
    Refused("http in lower case", get().replace(b"HTTP", b"http"), *MALFORMED),
    Refused("a tab in the request line", get().replace(b" /", b"\t/"), *MALFORMED),
    Refused("an unknown method", get(method="FETCH"), *MALFORMED),
    Refused("a method in lower case", get(method="get"), *MALFORMED),
    Refused("CONNECT", raw("CONNECT a:443 HTTP/1.1", "host: a:443"), *UNKNOWN),
    Refused("websocket", get("/", "connection: upgrade", "upgrade: websocket"), *UNKNOWN),
    Refused("h2c, body", post("/", b"x", "connection: upgrade", "upgrade: h2c"), *UNKNOWN),
    Refused("* of a GET", get("*"), *MALFORMED),
    Refused("a target with a fragment", get("/a#b"), *MALFORMED),
    Refused("a target that is no path", get("a/b"), *MALFORMED),
    Refused("a target with a byte above 127", get("/\xff"), *MALFORMED),
    Refused("a target with a user", get("http://u@a/"), *MALFORMED),
    Refused("a target with no authority", get("http:///a"), *MALFORMED),
    Refused("a target too long", get("/" + LONGEST), 414, "uri_too_long"),
    Refused("too many fields", get("/", *["a: b"] * MAX_FIELDS), 431, "headers_too_large"),
    Refused("fields too large", get("/", "a: " + "b" * MAX_HEAD_BYTES), 431, "headers_too_large"),
    Refused("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", *MALFORMED),
    Refused("expect of something else", get("/", "expect: 200-ok"), 417, "expectation"),
    Refused("two expectations", get("/", "expect: 100-continue", "expect: 100-continue"), *MALFORMED),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(case: Refused) -> None:
    """Nothing of it reaches the engine, and the connection, whose framing is lost, ends."""
    wire = Wire()
    client = wire.client() >> case.sent + get("/smuggled")
    refusal = client.answer()
    assert (refusal.status, refusal.reason) == (case.status, case.reason)
    assert refusal[b"connection"] == b"close"
    assert refusal[b"x-request-id"].decode() == ID
    assert not client.is_open
    assert client.received() == b""
    assert wire.engines == []
    assert (wire.record.status, wire.record.reason) == (case.status, case.reason)
    wire.assert_at_rest()


CHUNK_ERRORS = {
    "no size": b"\r\n",
    "a size that is none": b"g\r\n",
    "a size with a sign": b"+1\r\na\r\n",
    "a size with 0x": b"0x1\r\na\r\n",
    "a size with _": b"1_0\r\n" + b"a" * 16 + b"\r\n",
    "a size with a space": b" 1\r\na\r\n",
    "a size after which is space": b"1 \r\na\r\n",
    "a size that overflows": b"1" + b"0" * 16 + b"\r\n",
    "a bare LF after a size": b"1\na\r\n",
    "a bare LF in an extension": b"1;a=b\n\r\na\r\n",
    "a bare CR in an extension": b"1;a=b\rc\r\na\r\n",
    "data longer than its size": b"1\r\nab\r\n",
    "a bare LF after data": b"1\r\na\n0\r\n\r\n",
    "an invalid trailer": b"0\r\na b\r\n\r\n",
    "space before a trailer's colon": b"0\r\na : b\r\n\r\n",
}


@pytest.mark.parametrize("path", [CHAT, "/upload"])
@pytest.mark.parametrize("name", CHUNK_ERRORS)
def test_a_broken_chunk(name: str, path: str) -> None:
    wire = Wire()
    client = wire.client() >> post_chunked(path, b"{", last=False) >> CHUNK_ERRORS[name] + get("/smuggled")
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == MALFORMED
    assert not client.is_open
    assert all(engine.aborted and not engine.seen[-1].complete for engine in wire.engines)
    wire.assert_at_rest()


@pytest.mark.parametrize(
    "sent",
    [
        post(CHAT, b"x" * 2000),
        get(CHAT, "content-length: 2000", "expect: 100-continue", method="POST"),
        post_chunked(CHAT, *[b"x" * 100] * 11, last=False),
    ],
)
def test_a_body_too_large(sent: bytes) -> None:
    wire = Wire("max_body_bytes: 1024")
    client = wire.client() >> sent
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (413, "body_too_large")
    assert refusal.interim == []
    assert b"1024 bytes" in refusal.body
    assert not client.is_open
    assert wire.engines == []
    wire.assert_at_rest()


def test_refusals_on_openai_paths_are_openais() -> None:
    client = Wire().client() >> get("/v1/models", "expect: x")
    refusal = client.answer()
    assert refusal[b"content-type"] == b"application/json"
    error = json.loads(refusal.body)["error"]
    assert error == {
        "message": "The only expectation met is 100-continue.",
        "type": "invalid_request_error",
        "param": None,
        "code": "expectation",
    }


def test_refusals_elsewhere_are_plain() -> None:
    refusal = (Wire().client() >> get("/sleep")).answer()
    assert refusal[b"content-type"] == b"text/plain; charset=utf-8"
    assert refusal.body == b"This path is not open to callers.\n"


def test_a_refusal_of_head_has_no_body() -> None:
    wire = Wire()
    client = wire.client() >> get("/sleep", method="HEAD") + get("/next")
    assert client.answer(b"HEAD").reason == "forbidden"
    assert wire.engine.request().target == b"/next"


# Requests that pass.


@pytest.mark.parametrize(
    ("sent", "target", "host"),
    [
        (get("/"), b"/", b"a"),
        (b"\r\n\r\n" + get("/"), b"/", b"a"),
        (get("//a/../b?c=d%20/?e"), b"//a/../b?c=d%20/?e", b"a"),
        (get("*", method="OPTIONS"), b"*", b"a"),
        (get("http://b:1/c?d"), b"/c?d", b"b:1"),
        (get("http://b"), b"/", b"b"),
        (raw("GET / HTTP/1.1", "HOST:\t[::1]:80 "), b"/", b"[::1]:80"),
        (raw("GET / HTTP/1.1", "host:"), b"/", b""),
        (get("/" + "a" * (MAX_TARGET_BYTES - 1)), b"/" + b"a" * (MAX_TARGET_BYTES - 1), b"a"),
    ],
)
def test_targets_and_host(sent: bytes, target: bytes, host: bytes) -> None:
    wire = Wire()
    wire.client() >> sent
    seen = wire.engine.request()
    assert (seen.target, seen[b"host"]) == (target, host)


def test_fields_pass_in_order_with_their_repeats() -> None:
    wire = Wire()
    wire.client() >> get("/", "B: 1", "a:  x y \t", "b: 2", "accept: é", "empty:")
    assert wire.engine.request().fields[1:-5] == [
        (b"b", b"1"), (b"a", b"x y"), (b"b", b"2"), (b"accept", b"\xe9"), (b"empty", b""),
    ]  # fmt: skip


def test_hop_by_hop_fields_end_here_both_ways() -> None:
    wire = Wire()
    hop = ["keep-alive: timeout=5", "proxy-connection: x", "te: trailers", "trailer: x", "x-hop: 1"]
    named = "connection: keep-alive, X-Hop, host, content-length, authorization"
    client = wire.client() >> post("/", b"abc", named, "authorization: Bearer k", *hop)
    seen = wire.engine.request()
    assert {name for name, _ in seen.fields} == {
        b"host", b"authorization", b"content-length", b"via", b"x-forwarded-for", b"x-forwarded-proto",
        b"x-forwarded-host", b"x-request-id",
    }  # fmt: skip
    assert seen.body == b"abc"
    wire.engine >> ok(b"x", b"connection: x-hop, content-length", b"x-hop: 1", b"keep-alive: x", b"a: b")
    back = client.answer(b"POST")
    assert {name for name, _ in back.fields} == {
        b"a", b"content-length", b"via", b"x-request-id", b"server-timing",
    }  # fmt: skip


def test_an_upgrade_without_connection_is_a_field_that_ends_here() -> None:
    wire = Wire()
    wire.client() >> get("/", "upgrade: websocket")
    assert b"upgrade" not in wire.engine.request()


@pytest.mark.parametrize("offer", ["h2c", "H2C", "h2c, websocket"])
def test_the_offer_of_h2c_is_ignored(offer: str) -> None:
    wire = Wire()
    offered = get("/1", "connection: Upgrade, HTTP2-Settings", f"upgrade: {offer}", "http2-settings: AAMA")
    client = wire.client() >> offered + get("/2")
    for target in (b"/1", b"/2"):
        seen = wire.engine.request()
        assert seen.target == target
        assert b"upgrade" not in seen
        assert b"http2-settings" not in seen
        wire.engine >> ok()
        assert client.answer().status == 200


def test_via_is_appended_both_ways() -> None:
    wire = Wire()
    client = wire.client() >> get("/", "via: 1.0 one", "via: 1.1 two")
    assert wire.engine.request()[b"via"] == b"1.0 one, 1.1 two, 1.1 headgate"
    wire.engine >> ok(b"", b"via: 1.1 vllm")
    assert client.answer()[b"via"] == b"1.1 vllm, 1.1 headgate"


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


def test_an_engines_word_in_the_meshs_name_never_reaches_the_client() -> None:
    wire = Wire()
    client = wire.client() >> get()
    own = b"server-timing: gpu;dur=1"
    wire.engine >> answer(b"103 E", b"", b"x-headgate-reason: a", b"link: x")
    wire.engine >> ok(b"", b"X-Headgate-Elsewhere: 1", b"x-headgate-reason: a", b"x-headgate-: a", own)
    back = client.answer()
    assert back.interim == [(103, [(b"link", b"x")])]
    assert not any(name.startswith(b"x-headgate-") for name, _ in back.fields)
    timings = [value for name, value in back.fields if name == b"server-timing"]
    assert timings == [b"gpu;dur=1", b"limit;dur=0, queue;dur=0.0, upstream;dur=0.0"]


SHADOWS = ["x_headgate_hop", "X_Forwarded_For", "x-forwarded_proto", "content_length", "proxy_connection"]


def test_names_that_frameworks_would_read_as_ours_do_not_pass() -> None:
    """WSGI and CGI read "_" as "-": the engine would take the caller's word for the sidecar's."""
    wire = Wire()
    wire.client() >> get("/", *(f"{name}: 1" for name in SHADOWS), "user_id: 7", "x_headgateway: 8", "te_: 9")
    seen = wire.engine.request()
    assert [name for name, _ in seen.fields if b"_" in name] == [b"user_id", b"x_headgateway", b"te_"]
    assert seen[b"x-forwarded-for"] == b"192.0.2.7"


@pytest.mark.parametrize(("config", "passes"), [("", False), (TRUSTING, True)])
def test_the_words_of_a_proxy_pass_from_a_proxy_alone(config: str, passes: bool) -> None:
    wire = Wire(config)
    wire.client() >> get("/", "Forwarded: for=a", "x-real-ip: b", "x-request-start: t=1", "x_real_ip: c")
    names = {name for name, _ in wire.engine.request().fields}
    assert names >= {b"forwarded", b"x-real-ip", b"x-request-start", b"x_real_ip"} if passes else (
        names.isdisjoint({b"forwarded", b"x-real-ip", b"x-request-start", b"x_real_ip"})
    )


@pytest.mark.parametrize("path", [CHAT, "/upload"])
def test_100_continue_is_answered_here(path: str) -> None:
    wire = Wire()
    client = wire.client() >> get(path, "Expect: 100-Continue", "content-length: 2", method="POST")
    client << b"HTTP/1.1 100 Continue\r\n\r\n"
    client >> b"{}"
    seen = wire.engine.request()
    assert seen.body == b"{}"
    assert b"expect" not in seen
    wire.engine >> answer(b"100 Continue", b"") + ok()
    back = client.answer(b"POST")
    assert (back.status, back.interim) == (200, [])


@pytest.mark.parametrize(
    "sent",
    [
        get("/", "expect: 100-continue"),
        post("/", b"{}", "expect: 100-continue"),
        post("/", b"{}", "expect: 100-continue", version="1.0"),
    ],
)
def test_no_100_where_it_is_not_waited_for(sent: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent
    client << b""
    assert b"expect" not in wire.engine.request()


@pytest.mark.parametrize("path", [CHAT, "/upload"])
@pytest.mark.parametrize(("version", "first"), [("1.1", b"{"), ("1.0", b"")])
def test_no_100_to_who_does_not_wait(path: str, version: str, first: bytes) -> None:
    wire = Wire()
    asking = get(path, "expect: 100-continue", "content-length: 2", method="POST", version=version)
    client = wire.client() >> asking + first >> b"{}"[len(first) :]
    client << b""
    assert wire.engine.request().body == b"{}"


def test_no_100_for_who_is_turned_away() -> None:
    client = Wire().client() >> get("/sleep", "expect: 100-continue", "content-length: 2", method="POST")
    assert client.answer(b"POST").interim == []


# Connections.


def test_keep_alive_and_pipelining_in_order() -> None:
    wire = Wire()
    client = wire.client() >> get("/1") + get("/2") >> get("/3")
    for i in (b"1", b"2", b"3"):
        assert wire.engine.request().target == b"/" + i
        assert client.received() == b""
        wire.engine >> ok(i)
        assert client.answer().body == i
    assert client.is_open
    assert len(wire.engines) == 1


@pytest.mark.parametrize(
    "sent",
    [get("/", "connection: close"), get("/", "connection: x, Close"), get(version="1.0"),
     get("/", "connection: keep-alive", version="1.0")],
)  # fmt: skip
def test_the_last_answer_says_so_and_closes(sent: bytes) -> None:
    wire = Wire()
    client = wire.client() >> sent + get("/never")
    wire.engine >> ok(b"x")
    assert client.answer()[b"connection"] == b"close"
    assert not client.is_open
    assert client.received() == b""
    assert len(wire.engine.seen) == 1
