"""Which peer is asked, and what is known of them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.fleet import Fleet, Peer
from sidecar.balance.heartbeat import Heartbeat

NOW = 1000.0


def drawn(*draws: float) -> Callable[[], float]:
    left: Iterator[float] = iter(draws)
    return lambda: next(left)


def never() -> float:
    raise AssertionError("nothing is to be drawn")


def says(
    pod: str = "pod-1", address: str = "10.0.0.1:80", state: str = "serving", **more: object
) -> Heartbeat:
    return Heartbeat(pod, address, state, **more)  # type: ignore[arg-type]


def fleet(*heartbeats: Heartbeat, chance: Callable[[], float] = never) -> Fleet:
    it = Fleet(Endpoint("127.0.0.1", 8000), chance)
    for heartbeat in heartbeats:
        assert it.hear(heartbeat, NOW) is not None
    return it


def peer(**more: object) -> Peer:
    found = fleet().hear(says(**more), NOW)  # type: ignore[arg-type]
    assert found is not None
    return found


# What is heard.


def test_what_a_peer_says_is_kept() -> None:
    one = peer(
        models=("a", "b"), waiting=3, running=4, utilization=0.5, capacity=9.0, state="down", why="lost"
    )
    assert (one.pod, one.host, one.port, one.name) == ("pod-1", "10.0.0.1", 80, "10.0.0.1:80")
    assert (one.state, one.why, one.models) == ("down", "lost", {"a", "b"})
    assert (one.waits, one.utilization, one.capacity, one.heard) == (7, 0.5, 9.0, NOW)
    assert one.is_peer


@pytest.mark.parametrize(
    ("address", "host", "port", "name"),
    [
        ("[2001:db8::1]:80", "2001:db8::1", 80, "[2001:db8::1]:80"),
        ("pod-1.pods:65535", "pod-1.pods", 65535, "pod-1.pods:65535"),
    ],
)
def test_addresses(address: str, host: str, port: int, name: str) -> None:
    one = peer(address=address)
    assert (one.host, one.port, one.name) == (host, port, name)


@pytest.mark.parametrize(
    "address",
    ["", "10.0.0.1", ":80", "10.0.0.1:", "10.0.0.1:0", "10.0.0.1:65536", "h:-1", "h:\u0661", "unix:/a"],
)
def test_who_cannot_be_reached_is_no_peer(address: str) -> None:
    it = fleet(says("pod-1"), says("pod-2"))
    assert it.hear(says(address=address), NOW) is None
    assert it.peers.keys() == {"pod-2"}


def test_newer_words_replace_older_ones() -> None:
    it = fleet(says(models=("a",), waiting=1))
    one = it.peers["pod-1"]
    one.sent = 5
    assert it.hear(says(state="draining"), NOW + 1) is one
    assert (one.state, one.models, one.waits, one.sent, one.heard) == ("draining", frozenset(), 0, 0, NOW + 1)


@pytest.mark.parametrize("late", [says(state="down"), says(address="10.0.0.9:80"), says(address="")])
def test_older_words_change_nothing(late: Heartbeat) -> None:
    it = fleet(says())
    one = it.peers["pod-1"]
    one.sent = 5
    it.hear(late, NOW + 1, age_s=1.5)
    assert it.peers == {"pod-1": one}
    assert (one.state, one.port, one.sent, one.heard) == ("serving", 80, 5, NOW)


def test_a_pod_that_moved_is_another_endpoint() -> None:
    it = fleet(says())
    before = it.peers["pod-1"]
    before.block(NOW)
    after = it.hear(says(address="10.0.0.2:80"), NOW + 1)
    assert after is it.peers["pod-1"]
    assert after is not before
    assert after.takes("other", NOW)


def test_pods_that_are_gone() -> None:
    it = fleet(says("pod-1"), says("pod-2"), says("pod-3"))
    it.forget("pod-2")
    it.forget("pod-2")
    assert it.peers.keys() == {"pod-1", "pod-3"}
    it.keep(["pod-3", "pod-4"])
    assert it.peers.keys() == {"pod-3"}


# Who takes it.


@pytest.mark.parametrize(
    ("models", "model", "takes"),
    [
        (("a", "b"), "a", True),
        (("a", "b"), "c", False),
        (("a", "b"), "other", True),  # its engine says so if it has none of that name
        ((), "c", True),
    ],
)
def test_a_peer_takes_the_models_that_it_has(models: tuple[str, ...], model: str, takes: bool) -> None:
    assert peer(models=models).takes(model, NOW) is takes


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", "down"),
        ("state", "ejected"),
        ("state", "draining"),
        ("healthy", False),
        ("hung", True),
        ("ejected", True),
        ("blocked_until", NOW + 0.1),
        ("not_before", NOW + 0.1),
    ],
)
def test_each_of_these_alone_speaks_against_it(field: str, value: object) -> None:
    it = fleet(says())
    one = it.peers["pod-1"]
    assert it.peer("other", (), NOW) is one
    assert it.has_somebody(NOW)
    setattr(one, field, value)
    assert it.peer("other", (), NOW) is None
    assert not it.has_somebody(NOW)
    assert not it.has_room(NOW)


def test_what_ends_in_time_is_over_then() -> None:
    one = peer()
    one.blocked_until = one.not_before = NOW
    assert one.takes("other", NOW)


@pytest.mark.parametrize(("utilization", "room"), [(0.0, True), (0.99, True), (1.0, False), (3.0, False)])
def test_a_full_peer_has_a_queue_but_no_room(utilization: float, room: bool) -> None:
    it = fleet(says(utilization=utilization, models=("a",)))
    assert it.has_room(NOW, "a") is room
    assert it.has_somebody(NOW, "a")
    assert not it.has_room(NOW, "b")
    assert not it.has_somebody(NOW, "b")


def test_one_with_room_is_enough() -> None:
    assert fleet(says("pod-1", utilization=2.0), says("pod-2")).has_room(NOW)
    assert not fleet().has_room(NOW)


# Who is asked.


def test_one_is_taken_without_a_draw_and_where_it_was_tried_nobody() -> None:
    it = fleet(says())
    one = it.peers["pod-1"]
    assert it.peer("other", (), NOW) is one
    assert it.peer("other", (it.own,), NOW) is one
    assert it.peer("other", (it.own, one), NOW) is None


@pytest.mark.parametrize(
    ("field", "cheap", "dear"),
    [
        ("waits", 3, 4),
        ("sent", 0, 1),
        ("capacity", 2.0, 1.0),
        ("capacity", 1.0, 0.0),
    ],
)
def test_of_two_the_cheaper_one_is_asked(field: str, cheap: float, dear: float) -> None:
    for order in ((0.0, 0.0), (0.99, 0.99)):
        it = fleet(says("pod-1"), says("pod-2"), chance=drawn(*order))
        one, other = it.peers.values()
        setattr(one, field, dear)
        setattr(other, field, cheap)
        assert it.peer("other", (), NOW) is other


def test_the_one_that_answers_sooner_is_asked() -> None:
    it = fleet(says("pod-1"), says("pod-2"), chance=lambda: 0.0)
    one, other = it.peers.values()
    one.sample(2.0, NOW)
    other.sample(0.1, NOW)
    assert it.peer("other", (), NOW) is other
    other.waits = 19
    assert it.peer("other", (), NOW) is one, "2 s x 1 against 0.1 s x 20: the first drawn of equals"
    other.waits = 18
    assert it.peer("other", (), NOW) is other


def test_the_cost() -> None:
    one = peer(waiting=2, running=3, capacity=4.0)
    one.sample(0.5, NOW)
    one.sent = 6
    assert one.cost(NOW) == pytest.approx(0.5 * 12 / 4)
    less = peer(waiting=2, running=3, capacity=4.0, share=0.25)
    less.sample(0.5, NOW)
    less.sent = 6
    assert less.cost(NOW) == pytest.approx(4 * one.cost(NOW)), "it asks for a quarter"


@pytest.mark.parametrize(
    ("draws", "pair"),
    [
        ((0.0, 0.0), {0, 1}),
        ((0.0, 0.99), {0, 3}),
        ((0.3, 0.3), {1, 0}),
        ((0.3, 0.34), {1, 2}),
        ((0.99, 0.99), {3, 2}),
        ((1.0, 1.0), {3, 2}),
    ],
)
def test_two_different_ones_are_drawn(draws: tuple[float, float], pair: set[int]) -> None:
    asked = set()
    for dear in range(4):
        it = fleet(*(says(f"pod-{n}") for n in range(4)), chance=drawn(*draws))
        peers = list(it.peers.values())
        peers[dear].waits = 9
        found = it.peer("other", (), NOW)
        assert found is not None
        asked.add(peers.index(found))
    assert asked == pair


# The engine beside us.


def test_the_engine_beside_us_takes_what_it_can() -> None:
    it = fleet()
    assert it.own_takes(NOW)
    it.own.block(NOW)
    assert not it.own_takes(NOW)
    assert it.own_takes(NOW + 0.5)
    it.own.hung = True
    assert not it.own_takes(NOW + 0.5)


def test_while_we_leave_nothing_new_is_for_it() -> None:
    it = fleet()
    it.leaving = True
    assert not it.own_takes(NOW)


@pytest.mark.parametrize(
    ("draw", "utilization", "takes"),
    [(0.2, 0.5, True), (0.25, 0.5, False), (0.9, 0.5, False), (0.9, 1.0, True)],
)
def test_it_may_have_a_share_while_a_peer_has_room(draw: float, utilization: float, takes: bool) -> None:
    it = fleet(says(utilization=utilization), chance=drawn(draw))
    it.share = 0.25
    assert it.own_takes(NOW) is takes
    assert it.own_can(NOW), "without a draw"


def test_a_share_is_of_no_use_to_who_is_alone() -> None:
    it = fleet(chance=drawn(0.9))
    it.share = 0.25
    assert it.own_takes(NOW)


@pytest.mark.parametrize(
    ("said", "waits"),
    [({}, False), ({"utilization": 1.0}, True), ({"state": "down"}, True), ({"state": "draining"}, True)],
)
def test_who_says_that_it_has_room_again_is_asked_again(said: dict[str, Any], waits: bool) -> None:
    it = fleet(says("pod-1"))
    it.peers["pod-1"].not_before = NOW + 60
    it.hear(says("pod-1", **said), NOW + 1)
    assert (it.peers["pod-1"].not_before > NOW) is waits
