"""Bodies that are held in memory: counted from their first byte, given back at every end."""

from collections.abc import Callable

import pytest

from tests.harness.engine import SSE, End, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, get, post, post_chunked

SIZE = 40_000
ROOM = "max_body_bytes: 65536\nmax_buffered_bytes: 65536"
BODY = b"x" * SIZE


def holding(config: str = "") -> tuple[Wire, Client]:
    """A body that came with its head, and is at the engine."""
    wire = Wire(f"{ROOM}\n{config}")
    client = wire.client() >> post(CHAT, BODY)
    assert wire.plane.bodies.held == SIZE
    return wire, client


@pytest.mark.parametrize("sent", [post(CHAT, BODY), post_chunked(CHAT, BODY), post(CHAT, BODY)[:-1]])
def test_a_body_that_comes_with_its_head_counts_too(sent: bytes) -> None:
    wire, first = holding()
    second = wire.client() >> sent
    refusal = second.answer(b"POST")
    assert (refusal.status, refusal.reason) == (503, "overloaded")
    assert (refusal[b"x-headgate-elsewhere"], refusal[b"retry-after-ms"]) == (b"1", b"1200")
    assert wire.plane.bodies.held == SIZE
    wire.engine >> ok(b"1")
    assert first.answer(b"POST").body == b"1"
    third = wire.client() >> post(CHAT, BODY)
    wire.engine >> ok(b"3")
    assert third.answer(b"POST").body == b"3"
    wire.assert_at_rest()


def test_what_fits_to_the_byte_fits() -> None:
    wire, _ = holding()
    wire.client() >> post(CHAT, b"x" * (65536 - SIZE))
    assert wire.plane.bodies.held == 65536
    assert (wire.client() >> post(CHAT, b"x")).answer(b"POST").reason == "overloaded"


def test_a_body_counts_while_it_is_queued() -> None:
    wire = Wire(f"{ROOM}\nadmission: {{max_in_flight: 1}}")
    wire.client() >> post()
    wire.client() >> post(CHAT, BODY)
    assert wire.gate.queued == 1
    assert wire.plane.bodies.held == SIZE + 2


def test_a_body_that_streams_through_is_not_held() -> None:
    wire = Wire(ROOM)
    wire.client() >> post("/upload", b"x" * 1_000_000)
    assert wire.plane.bodies.held == 0
    assert len(wire.engine.request().body) == 1_000_000


def test_a_lower_limit_counts_what_is_held() -> None:
    wire, _ = holding()
    wire.configure(f"max_body_bytes: 1024\nmax_buffered_bytes: {SIZE}")
    assert (wire.client() >> post()).answer(b"POST").reason == "overloaded"
    wire.engine >> ok()
    wire.assert_at_rest()
    wire.client() >> post()
    assert wire.plane.bodies.held == 2


def answered(wire: Wire, client: Client) -> None:
    wire.engine >> ok()


def client_left(wire: Wire, client: Client) -> None:
    client >> End.CLOSE


def client_broke(wire: Wire, client: Client) -> None:
    client >> End.RESET


def engine_broke(wire: Wire, client: Client) -> None:
    wire.engine >> End.RESET


def engine_broke_later(wire: Wire, client: Client) -> None:
    wire.engine >> SSE + chunked(b"data: 1\n\n", last=False) >> End.RESET


def engine_spoke_nonsense(wire: Wire, client: Client) -> None:
    wire.engine >> b"nonsense\r\n\r\n"


def out_of_time(wire: Wire, client: Client) -> None:
    wire.advance(12)


def closed(wire: Wire, client: Client) -> None:
    client.downstream.close()


ENDS = [
    answered, client_left, client_broke, engine_broke, engine_broke_later, engine_spoke_nonsense, out_of_time,
    closed,
]  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_it_is_given_back_whatever_the_engine_and_the_client_do(end: Callable[[Wire, Client], None]) -> None:
    wire, client = holding("timeouts: {first_byte_s: 8}")
    end(wire, client)
    wire.settle()
    wire.assert_at_rest()


@pytest.mark.parametrize("end", [client_left, client_broke, out_of_time, closed])
def test_it_is_given_back_when_it_never_becomes_whole(end: Callable[[Wire, Client], None]) -> None:
    wire = Wire(f"{ROOM}\ntimeouts: {{body_s: 8}}")
    client = wire.client() >> post(CHAT, BODY)[:-1]
    assert wire.plane.bodies.held == SIZE - 1
    end(wire, client)
    wire.settle()
    wire.assert_at_rest()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("admission: {max_in_flight: 1, max_queue: 0}", "queue_full"),
        ("admission: {max_in_flight: 1, queue_timeout_s: 5}", "queue_timeout"),
    ],
)
def test_it_is_given_back_with_a_refusal(config: str, reason: str) -> None:
    wire = Wire(f"{ROOM}\n{config}")
    wire.client() >> get("/not-work")
    wire.client() >> post("/v1/other")
    client = wire.client() >> post(CHAT, BODY)
    wire.advance(6)
    assert client.answer(b"POST").reason == reason
    assert wire.plane.bodies.held == 0


def test_it_is_given_back_when_it_grows_too_large() -> None:
    wire = Wire(ROOM)
    client = wire.client() >> post_chunked(CHAT, BODY, last=False)
    assert wire.plane.bodies.held == SIZE
    client >> b"9c40\r\n" + BODY
    assert client.answer(b"POST").reason == "body_too_large"
    wire.assert_at_rest()
