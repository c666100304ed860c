"""Requests that are refused, and the connection with them: nothing of them may reach an engine.

What rule_NN says is in `test_http1_rules`.
"""

import json
from typing import NamedTuple

import pytest

from sidecar.http1.request import MAX_FIELDS, MAX_HEAD_BYTES, MAX_TARGET_BYTES
from tests.conformance.messages import raw
from tests.harness.wire import CHAT, Wire, get, post, post_chunked

CHUNKED = "transfer-encoding: chunked"
OFFER = "connection: upgrade"
ID = "0" * 31 + "1"


class Refused(NamedTuple):
    name: str
    sent: bytes
    status: int
    reason: str


MALFORMED = 400, "malformed"
UNKNOWN = 501, "not_implemented"
VERSION = 505, "version"
TOO_LARGE = 431, "headers_too_large"


def options(*fields: str) -> bytes:
    return get("/", *fields, method="OPTIONS")


def hosted(host: str) -> bytes:
    return raw("GET / HTTP/1.1", f"host: {host}")


def coded(*fields: str, version: str = "1.1") -> bytes:
    """With the end of a chunked body, so that only the head is wrong."""
    return get("/", *fields, version=version) + b"0\r\n\r\n"


def line(first: str) -> bytes:
    """A request of which only the first line is in question."""
    return raw(first, "host: a")


REFUSED = [
    Refused("rule_03: TRACE shows its credentials to whoever reads", get(method="TRACE"), *UNKNOWN),
    Refused("rule_03: TRACE that ends here", get("/", "max-forwards: 0", method="TRACE"), *UNKNOWN),
    Refused("rule_03: max-forwards of a word", options("max-forwards: x"), *MALFORMED),
    Refused("rule_03: max-forwards of nothing", options("max-forwards:"), *MALFORMED),
    Refused("rule_03: max-forwards below 0", options("max-forwards: -1"), *MALFORMED),
    Refused("rule_03: max-forwards with a sign", options("max-forwards: +1"), *MALFORMED),
    Refused("rule_03: max-forwards with a point", options("max-forwards: 1.0"), *MALFORMED),
    Refused("rule_03: max-forwards as a list", options("max-forwards: 1, 1"), *MALFORMED),
    Refused("rule_03: max-forwards repeated", options("max-forwards: 1", "max-forwards: 0"), *MALFORMED),
    Refused("rule_07: websocket", get("/", OFFER, "upgrade: websocket"), *UNKNOWN),
    Refused("rule_07: WebSocket", get("/", "connection: Upgrade", "upgrade: WebSocket"), *UNKNOWN),
    Refused("rule_07: websocket in a list", get("/", OFFER, "upgrade: x, websocket/13"), *UNKNOWN),
    Refused("rule_08: expect of something else", get("/", "expect: 200-ok"), 417, "expectation"),
    Refused("rule_08: two expectations", get("/", *["expect: 100-continue"] * 2), *MALFORMED),
    Refused("rule_13: bare LF", get().replace(b"\r\n", b"\n"), *MALFORMED),
    Refused("rule_13: bare LF in the head", get("/", "a: b\nc: d"), *MALFORMED),
    Refused("rule_13: bare LF after the request line", b"GET / HTTP/1.1\nhost: a\r\n\r\n", *MALFORMED),
    Refused("rule_13: bare LF at the head's end", get()[:-2] + b"\n", *MALFORMED),
    Refused("rule_13: bare LF before the request line", b"\n" + get(), *MALFORMED),
    Refused("rule_13: bare CR before the request line", b"\r" + get(), *MALFORMED),
    Refused("rule_13: bare CR in a value", get("/", "a: b\rc: d"), *MALFORMED),
    Refused("rule_13: bare CR at a value's end", get("/", "a: b\r"), *MALFORMED),
    Refused("rule_13: bare CR in the request line", b"GET /\rx HTTP/1.1\r\nhost: a\r\n\r\n", *MALFORMED),
    Refused("rule_13: bare CR for the head's end", get()[:-2] + b"\rx", *MALFORMED),
    Refused("rule_13: space before the first field", raw("GET / HTTP/1.1", " a: b", "host: a"), *MALFORMED),
    Refused("rule_13: a line of space before the fields", raw("GET / HTTP/1.1", " ", "host: a"), *MALFORMED),
    Refused("rule_13: TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", *MALFORMED),
    Refused("rule_15: a tab in the request line", line("GET\t/ HTTP/1.1"), *MALFORMED),
    Refused("rule_15: two spaces before the target", line("GET  / HTTP/1.1"), *MALFORMED),
    Refused("rule_15: two spaces after the target", line("GET /  HTTP/1.1"), *MALFORMED),
    Refused("rule_15: a space in the target", line("GET /a b HTTP/1.1"), *MALFORMED),
    Refused("rule_15: a space before the method", line(" GET / HTTP/1.1"), *MALFORMED),
    Refused("rule_15: a space after the version", line("GET / HTTP/1.1 "), *MALFORMED),
    Refused("rule_15: no target", line("GET HTTP/1.1"), *MALFORMED),
    Refused("rule_15: no method", line("/ HTTP/1.1"), *MALFORMED),
    Refused("rule_15: no version", b"GET /\r\n\r\n", *MALFORMED),
    Refused("rule_15: one word", b"nonsense\r\n\r\n", *MALFORMED),
    Refused("rule_15: a method that is no token", get(method="G(T"), *MALFORMED),
    Refused("rule_15: a method with a byte above 127", get(method="G\xc9T"), *MALFORMED),
    Refused("rule_15: a long method", get(method="M" * 33), *UNKNOWN),
    Refused("rule_15: a target too long", get("/" + "a" * MAX_TARGET_BYTES), 414, "uri_too_long"),
    Refused("rule_12: HTTP/0.9", get(version="0.9"), *VERSION),
    Refused("rule_12: HTTP/1.2", get(version="1.2"), *VERSION),
    Refused("rule_12: HTTP/2.0", get(version="2.0"), *VERSION),
    Refused("rule_12: HTTP/2 begun without asking", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", *VERSION),
    Refused("rule_15: a version that is none", get(version="x"), *MALFORMED),
    Refused("rule_15: a version of two digits", get(version="1.10"), *MALFORMED),
    Refused("rule_15: half a version", get(version="1"), *MALFORMED),
    Refused("rule_15: http in lower case", get().replace(b"HTTP", b"http"), *MALFORMED),
    Refused("rule_15: RTSP", get().replace(b"HTTP/1.1", b"RTSP/1.0"), *MALFORMED),
    Refused("rule_15: ICE", get().replace(b"HTTP/1.1", b"ICE/1.0"), *MALFORMED),
    Refused("rule_16: no host", raw("GET / HTTP/1.1"), *MALFORMED),
    Refused("rule_16: no host beside an absolute target", raw("GET http://a/ HTTP/1.1"), *MALFORMED),
    Refused("rule_16: two hosts", get("/", "host: a"), *MALFORMED),
    Refused("rule_16: two hosts in 1.0", get("/", "host: b", version="1.0"), *MALFORMED),
    Refused("rule_16: a list of hosts", hosted("a, b"), *MALFORMED),
    Refused("rule_16: a host with a path", hosted("a/b"), *MALFORMED),
    Refused("rule_16: a host with a user", hosted("u@a"), *MALFORMED),
    Refused("rule_16: a host with a space", hosted("a b"), *MALFORMED),
    Refused("rule_16: a host with a tab", hosted("a\tb"), *MALFORMED),
    Refused("rule_16: a host with a byte above 127", hosted("\xe9"), *MALFORMED),
    Refused("rule_16: a host with a word for port", hosted("a:b"), *MALFORMED),
    Refused("rule_16: a host with two ports", hosted("a:1:2"), *MALFORMED),
    Refused("rule_16: a host with half a bracket", hosted("[::1"), *MALFORMED),
    Refused("rule_16: an address without brackets", hosted("::1"), *MALFORMED),
    Refused("rule_16: an invalid host in 1.0", raw("GET / HTTP/1.0", "host: a/b"), *MALFORMED),
    Refused("rule_16: * of a GET", get("*"), *MALFORMED),
    Refused("rule_16: * of options in lower case", get("*", method="options"), *MALFORMED),
    Refused("rule_16: an authority", get("a:80"), *MALFORMED),
    Refused("rule_16: an absolute target with a user", get("http://u@a/"), *MALFORMED),
    Refused("rule_16: an absolute target with no authority", get("http:///a"), *MALFORMED),
    Refused("rule_16: an absolute target with no host", get("http://:80/a"), *MALFORMED),
    Refused("rule_16: an absolute target with two ports", get("http://a:1:2/"), *MALFORMED),
    Refused("rule_16: an absolute target of another kind", get("ftp://a/"), *MALFORMED),
    Refused("rule_17: a target with a fragment", get("/a#b"), *MALFORMED),
    Refused("rule_17: an absolute target with a fragment", get("http://a/#b"), *MALFORMED),
    Refused("rule_17: a target that is no path", get("a/b"), *MALFORMED),
    Refused("rule_17: a target with a control", get("/\x01"), *MALFORMED),
    Refused("rule_17: a target with NUL", get("/\0"), *MALFORMED),
    Refused("rule_17: a target with DEL", get("/\x7f"), *MALFORMED),
    Refused("rule_17: a target with a byte above 127", get("/\xff"), *MALFORMED),
    Refused("rule_18: space before the colon", get("/", "a : b"), *MALFORMED),
    Refused("rule_18: a tab before the colon", get("/", "a\t: b"), *MALFORMED),
    Refused("rule_18: space before the colon of a length", get("/", "content-length : 1"), *MALFORMED),
    Refused("rule_18: obs-fold", get("/", "a: b", " c"), *MALFORMED),
    Refused("rule_18: obs-fold with a tab", get("/", "a: b", "\tc"), *MALFORMED),
    Refused("rule_18: obs-fold of nothing", get("/", "a: b", " "), *MALFORMED),
    Refused("rule_18: NUL in a value", get("/", "a: b\0"), *MALFORMED),
    Refused("rule_18: NUL in a name", get("/", "a\0: b"), *MALFORMED),
    Refused("rule_18: a control in a value", get("/", "a: b\x07"), *MALFORMED),
    Refused("rule_18: DEL in a value", get("/", "a: b\x7f"), *MALFORMED),
    Refused("rule_18: no name", get("/", ": b"), *MALFORMED),
    Refused("rule_18: no colon", get("/", "a"), *MALFORMED),
    Refused("rule_18: a space in a name", get("/", "a b: c"), *MALFORMED),
    Refused("rule_18: a name that is no token", get("/", "a(b): c"), *MALFORMED),
    Refused("rule_18: a name with a byte above 127", get("/", "\xe9: c"), *MALFORMED),
    Refused("rule_19: chunked twice", coded(CHUNKED + ", chunked"), *MALFORMED),
    Refused("rule_19: chunked repeated", coded(CHUNKED, CHUNKED), *MALFORMED),
    Refused("rule_19: chunked, gzip", coded(CHUNKED + ", gzip"), *MALFORMED),
    Refused("rule_19: gzip, chunked", coded("transfer-encoding: gzip, chunked"), *UNKNOWN),
    Refused("rule_19: gzip", coded("transfer-encoding: gzip"), *UNKNOWN),
    Refused("rule_19: xchunked", coded("transfer-encoding: xchunked"), *UNKNOWN),
    Refused("rule_19: identity", coded("transfer-encoding: identity"), *UNKNOWN),
    Refused("rule_19: chunked in 1.0", coded(CHUNKED, version="1.0"), *MALFORMED),
    Refused("rule_19: gzip in 1.0", coded("transfer-encoding: gzip", version="1.0"), *MALFORMED),
    Refused("rule_20: a length beside chunked", coded("content-length: 3", CHUNKED), *MALFORMED),
    Refused("rule_20: chunked beside a length", coded(CHUNKED, "content-length: 3"), *MALFORMED),
    Refused("rule_20: no length beside chunked", coded(CHUNKED, "content-length: 0"), *MALFORMED),
    Refused("rule_21: repeated", get("/", "content-length: 1", "content-length: 1"), *MALFORMED),
    Refused("rule_21: two that differ", get("/", "content-length: 1", "Content-Length: 2"), *MALFORMED),
    Refused("rule_21: a list", get("/", "content-length: 1, 1"), *MALFORMED),
    Refused("rule_21: a list that ends early", get("/", "content-length: 1,"), *MALFORMED),
    Refused("rule_21: a sign", get("/", "content-length: +1"), *MALFORMED),
    Refused("rule_21: below 0", get("/", "content-length: -1"), *MALFORMED),
    Refused("rule_21: hex", get("/", "content-length: 0x1"), *MALFORMED),
    Refused("rule_21: an underscore", get("/", "content-length: 1_0"), *MALFORMED),
    Refused("rule_21: a space", get("/", "content-length: 1 1"), *MALFORMED),
    Refused("rule_21: a superscript", get("/", "content-length: \xb2"), *MALFORMED),
    Refused("rule_21: empty", get("/", "content-length:"), *MALFORMED),
    Refused("rule_21: too large", get("/", f"content-length: {2**64}"), *MALFORMED),
    Refused("rule_26: CONNECT", raw("CONNECT a:443 HTTP/1.1", "host: a:443"), *UNKNOWN),
    Refused("rule_26: CONNECT of a path", get(method="CONNECT"), *UNKNOWN),
    Refused("rule_28: too many fields", get("/", *["a: b"] * MAX_FIELDS), *TOO_LARGE),
    Refused("rule_28: fields too large", get("/", *["a: " + "b" * 1500] * 44), *TOO_LARGE),
    Refused("rule_28: a field too large", get("/", "a: " + "b" * MAX_HEAD_BYTES), *TOO_LARGE),
    Refused("rule_28: a name too large", get("/", "b" * MAX_HEAD_BYTES + ": a"), *TOO_LARGE),
    Refused("rule_30: two content-types", get("/", "content-type: a/b", "content-type: a/b"), *MALFORMED),
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


@pytest.mark.parametrize(
    "coding", ["", ",", "chunked,", ", chunked", "chunked;a=b", '"chunked"', "chunked chunked", "chunked, x"]
)
def test_rule_19_what_is_not_exactly_chunked(coding: str) -> None:
    """Whether it is a mistake or something unknown may be told either way; it is not read as a body."""
    wire = Wire()
    client = wire.client() >> get("/", f"transfer-encoding: {coding}", method="POST") + b"0\r\n\r\n" + get()
    assert client.answer(b"POST").status in (400, 501)
    assert not client.is_open
    assert wire.engines == []


HOPELESS = [
    b"\x16\x03\x01", b"(", b" ", b"\n", b"\rG", b"GET\t", b"GET  ", b"GET /\x80", b"GET /\n", b"GET / X",
    b"GET / HTTP/1.1\n", b"GET / HTTP/1.1 ", b"GET / HTTP/1.1\r\na: b\n", b"GET / HTTP/1.1\r\na: b\rc",
    b"GET / HTTP/1.1\r\na: \0",
]  # fmt: skip


@pytest.mark.parametrize("begun", HOPELESS)
@pytest.mark.parametrize("before", [b"", b"\r\n", get("/1")])
def test_rule_13_what_cannot_become_a_request_is_refused_at_once(before: bytes, begun: bytes) -> None:
    """Who waits for the end of its line waits for ever."""
    wire = Wire()
    client = wire.client() >> before
    for byte in begun:
        client >> bytes([byte])
    if b"GET" in before:
        wire.engine >> b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
        assert client.answer().status == 200
    assert client.answer().status == 400
    assert not client.is_open


@pytest.mark.parametrize("sent", [get(), get("/", "connection: close"), get(version="1.0")])
def test_what_is_refused_behind_a_request_waits_for_its_answer(sent: bytes) -> None:
    """An answer is owed to the first; the refusal may not be taken for it."""
    wire = Wire()
    client = wire.client() >> sent + b"nonsense\r\n\r\n"
    client << b""
    wire.engine >> b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    assert client.answer().status == 200
    assert not client.is_open


@pytest.mark.parametrize(
    "sent",
    [
        post(CHAT, b"x" * 2000),
        get(CHAT, "content-length: 2000", "expect: 100-continue", method="POST"),
        post_chunked(CHAT, *[b"x" * 100] * 11, last=False),
    ],
)
def test_rule_12_a_body_too_large(sent: bytes) -> None:
    wire = Wire("max_body_bytes: 1024")
    client = wire.client() >> sent
    refusal = client.answer(b"POST")
    assert (refusal.status, refusal.reason) == (413, "body_too_large")
    assert refusal.interim == []
    assert b"1024 bytes" in refusal.body
    assert not client.is_open
    assert wire.engines == []
    wire.assert_at_rest()


# What a refusal looks like.


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


def test_rule_10_a_refusal_of_head_has_no_body() -> None:
    wire = Wire()
    client = wire.client() >> get("/sleep", method="HEAD") + get("/next")
    assert client.answer(b"HEAD").reason == "forbidden"
    client << b""
    assert wire.engine.request().target == b"/next"


def test_rule_12_a_503_says_when_to_return() -> None:
    wire = Wire()
    wire.lifecycle.draining = True
    refusal = (wire.client() >> post()).answer(b"POST")
    assert refusal.status == 503
    assert refusal[b"retry-after"].isdigit()


def test_rule_12_a_401_says_how_to_authenticate() -> None:
    """RFC 9110 section 15.5.2: it must carry a challenge."""
    refusal = (Wire("unknown_keys: reject").client() >> post()).answer(b"POST")
    assert refusal.status == 401
    assert refusal[b"www-authenticate"].lower().startswith(b"bearer")


@pytest.mark.parametrize("path", ["/sleep", "http://a/sleep", "/sleep?x", "/sleep/1"])
def test_what_is_denied_is_denied_in_every_form(path: str) -> None:
    wire = Wire()
    refusal = (wire.client() >> get(path, method="POST")).answer(b"POST")
    assert (refusal.status, refusal.reason) == (403, "forbidden")
    assert wire.engines == []
