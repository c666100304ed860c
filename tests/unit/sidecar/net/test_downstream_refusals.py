"""Every refusal leaves a count, a record and an id, also that of bytes which are no request."""

from collections.abc import Callable

import pytest

from tests.harness.engine import End
from tests.harness.wire import CHAT, Client, Wire, get, post


def sent(data: bytes) -> Callable[[Wire], Client]:
    return lambda wire: wire.client() >> data


def late(data: bytes) -> Callable[[Wire], Client]:
    def client(wire: Wire) -> Client:
        client = wire.client() >> data
        wire.advance(40)
        return client

    return client


def crowded(wire: Wire) -> Client:
    return [wire.client() for _ in range(4)][-1]


def draining(wire: Wire) -> Client:
    wire.lifecycle.draining = True
    return wire.client() >> post()


def refused_by_the_engine(wire: Wire) -> Client:
    wire.dialer.refused = True
    return wire.client() >> post()


def dropped_by_the_engine(wire: Wire) -> Client:
    client = wire.client() >> post()
    wire.engine >> End.RESET
    return client


CASES: list[tuple[str, Callable[[Wire], Client]]] = [
    ("malformed", sent(b"nonsense\r\n\r\n")),
    ("malformed", sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")),
    ("version", sent(get(version="2.0"))),
    ("uri_too_long", sent(b"GET /" + b"a" * 100_000)),
    ("headers_too_large", sent(get("/", "a: " + "b" * 100_000))),
    ("not_implemented", sent(get(method="CONNECT"))),
    ("request_timeout", late(get()[:-2])),
    ("request_timeout", late(post()[:-1])),
    ("too_many_connections", crowded),
    ("expectation", sent(get("/", "expect: x"))),
    ("forbidden", sent(get("/sleep"))),
    ("body_too_large", sent(post(CHAT, b"x" * 2000))),
    ("timeout", late(post(CHAT, b"{}", "x-request-timeout-ms: 1"))),
    ("draining", draining),
    ("connect_failed", refused_by_the_engine),
    ("upstream_reset", dropped_by_the_engine),
]


@pytest.mark.parametrize(("reason", "provoke"), CASES, ids=[f"{i}-{case[0]}" for i, case in enumerate(CASES)])
def test_a_refusal_is_counted_once_and_has_an_id(reason: str, provoke: Callable[[Wire], Client]) -> None:
    wire = Wire("max_body_bytes: 1024\nmax_connections: 3")
    refusal = provoke(wire).answer(b"POST")
    assert refusal.reason == reason
    assert refusal[b"x-request-id"].decode() == wire.record.request_id
    assert wire.record.request_id
    assert (wire.record.status, wire.record.reason) == (refusal.status, reason)
    page, _ = wire.metrics.render("")
    counted = [
        line.rpartition(b" ")[2]
        for line in page.splitlines()
        if b'reason="%b"' % reason.encode() in line and b'status="%d"' % refusal.status in line
    ]
    assert counted == [b"1.0"]
    assert len(wire.receipts.last(100)) == 1
    wire.assert_at_rest()


def test_the_callers_id_is_kept_in_a_refusal() -> None:
    refusal = (Wire().client() >> get("/sleep", "x-request-id: mine")).answer()
    assert refusal[b"x-request-id"] == b"mine"
