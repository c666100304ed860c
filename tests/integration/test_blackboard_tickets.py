"""Who is ejected, by the rules of `blackboard.lua`, in a real Valkey whose time the test decides."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from sidecar.balance.blackboard import Terms
from tests.harness.blackboard import (
    EJECTED,
    PROBES,
    SUSPECTS,
    TEN,
    TICKETS,
    VOTES,
    Wall,
    blackboard,
    vote,
)

if TYPE_CHECKING:
    import redis

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator["redis.Redis"]:
    with blackboard() as wall:
        yield wall.store


@pytest.fixture
def wall(server: "redis.Redis") -> Wall:
    server.flushall()
    return Wall(server)


def test_a_ticket_is_granted_and_ends_by_itself(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    with wall.listening() as heard:
        assert first.vote("pod-3", ms=4000) == "granted"
    (published,) = heard
    (ticket,) = first.post().ejected
    assert published.ejected == (ticket,)
    assert (ticket.pod, ticket.remaining_ms, ticket.reason, ticket.voters) == (
        "pod-3",
        4000,
        "slow",
        ("pod-0",),
    )
    assert wall["pod-1"].vote("pod-3") == "exists"
    wall.now += 3999
    assert len(wall["pod-1"].post().ejected) == 1
    wall.now += 1
    assert wall["pod-1"].post().ejected == ()
    assert not wall.store.exists(EJECTED, TICKETS, VOTES, SUSPECTS)


def test_no_ticket_is_longer_than_the_longest(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-3", ms=10**9)
    assert wall.out() == {"pod-3": 300.0}


def test_a_pod_makes_its_own_ticket_longer_and_nobody_else_does(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    assert first.vote("pod-0", ms=4000) == "granted"
    assert second.vote("pod-0", ms=9000) == "exists"
    assert first.vote("pod-0", ms=3000) == "exists"
    assert wall.out() == {"pod-0": 4.0}
    with wall.listening() as heard:
        assert first.vote("pod-0", ms=9000) == "exists"
    (published,) = heard
    assert published.ejected is not None
    assert [(ticket.pod, ticket.remaining_ms) for ticket in published.ejected] == [("pod-0", 9000)]
    first.vote("pod-0", ms=10**9)
    assert wall.out() == {"pod-0": 300.0}
    assert not wall.store.exists(VOTES, SUSPECTS)


@pytest.mark.parametrize(
    ("observers", "needed"), [(1, 1), (3, 1), (4, 2), (6, 2), (7, 3), (9, 3), (10, 3), (256, 3)]
)
def test_how_many_votes_are_enough(wall: Wall, observers: int, needed: int) -> None:
    sidecars = wall.pods(*TEN)
    for number, each in enumerate(sidecars[:needed], start=1):
        each.post()
        assert each.vote("pod-9", alone=False, observers=observers) == (
            "granted" if number == needed else "votes"
        )
    assert {*wall["pod-0"].post().ejected[0].voters} == {*TEN[:needed]}


def test_one_that_stands_alone_is_enough(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    assert first.vote("pod-9", alone=False, observers=10) == "votes"
    assert first.vote("pod-9", alone=False, observers=10) == "votes", "twice the same is one"
    assert first.vote("pod-9", alone=True, observers=10) == "granted"


def test_a_vote_ends_after_ten_seconds(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    first.vote("pod-9", alone=False, observers=6)
    wall.advance(9.999)
    assert first.post().suspects == ("pod-9",)
    wall.now += 1
    assert first.post().suspects == ()
    assert second.vote("pod-9", alone=False, observers=6) == "votes"
    wall.advance(9.0)
    assert first.vote("pod-9", alone=False, observers=6) == "granted"


def test_each_vote_has_its_own_end(wall: Wall) -> None:
    first, second, third, *_ = wall.pods(*TEN)
    first.vote("pod-9", alone=False, observers=9)
    wall.advance(5.0)
    second.vote("pod-9", alone=False, observers=9)
    wall.advance(5.0)
    assert third.vote("pod-9", alone=False, observers=9) == "votes"
    assert first.vote("pod-9", alone=False, observers=9) == "granted"


def test_a_vote_that_is_repeated_does_not_end(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    for _ in range(8):
        assert first.vote("pod-9", alone=False, observers=6) == "votes"
        wall.advance(1.0)
    wall.advance(4.0)
    assert second.vote("pod-9", alone=False, observers=6) == "granted"


def test_votes_of_those_who_have_left_do_not_count(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    first.vote("pod-9", alone=False, observers=6)
    first.leave()
    assert second.vote("pod-9", alone=False, observers=6) == "votes"


def test_votes_are_kept_up_to_a_bound(wall: Wall) -> None:
    for each in wall.pods(*TEN):
        each.vote("pod-9", alone=False, observers=10**6) if each.pod < "pod-2" else None
    wall.terms = Terms(max_percent=0)
    for each in wall.pods(*(f"more-{i}" for i in range(20))):
        each.vote("pod-9", alone=False, observers=9)
        each.vote("pod-8", alone=False, observers=9)
    assert len(wall.store.hget(VOTES, "pod-8").split()) == 2 * 8


@pytest.mark.parametrize(
    ("pods", "percent", "words"),
    [
        (1, 20, ["cap"]),
        (2, 20, ["cap"]),
        (2, 50, ["cap"]),  # one of two is half
        (3, 0, ["granted", "systemic"]),
        (9, 20, ["granted", "cap"]),
        (10, 20, ["granted", "granted", "cap"]),
        (10, 29, ["granted", "granted", "cap"]),
        (10, 30, ["granted", "granted", "granted", "cap"]),
    ],
)
def test_the_cap(wall: Wall, pods: int, percent: int, words: list[str]) -> None:
    wall.terms = Terms(max_percent=percent)
    first, *_ = wall.pods(*TEN[:pods])
    assert [first.vote(pod) for pod in TEN[: len(words)]] == words


def test_those_that_are_down_neither_use_the_cap_nor_count(wall: Wall) -> None:
    first, second, third, *_ = wall.pods(*TEN[:5])
    assert first.vote("pod-1") == "granted"
    assert first.vote("pod-2") == "cap"
    second.set(state="down")
    assert first.vote("pod-2") == "granted"
    assert wall.out().keys() == {"pod-1", "pod-2"}
    assert first.vote("pod-1") == "exists"
    third.set(state="down")
    wall["pod-3"].set(state="down")
    assert first.vote("pod-4") == "cap", "two are left"
    assert first.vote("pod-3") == "absent"
    assert first.vote("nobody") == "absent"


def test_who_comes_back_makes_room_by_what_ends_first(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN[:5])
    first.vote("pod-1", ms=20_000)
    second.set(state="down")
    first.vote("pod-2", ms=10_000)
    with wall.listening() as heard:
        second.set(state="serving")
    assert wall.out() == {"pod-1": 20.0}
    assert [each.ejected[0].pod for each in heard if each.ejected] == ["pod-1"]


def test_when_pods_go_tickets_are_released_until_the_cap_holds(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1", ms=20_000)
    first.vote("pod-2", ms=10_000)
    wall["pod-9"].leave()
    assert wall.out() == {"pod-1": 20.0}
    for pod in TEN[3:9]:
        wall[pod].leave()
    assert wall.out() == {"pod-1": 20.0}, "one of three"
    wall["pod-2"].leave()
    assert wall.out() == {}


def test_silence_shrinks_a_mesh_as_well(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.vote("pod-2")
    wall.advance(6.0, silent=("pod-8", "pod-9"))
    assert len(wall.out()) == 1


def test_another_percentage_holds_at_once(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.vote("pod-2")
    wall.terms = Terms(max_percent=10)
    wall["pod-5"].post()
    assert len(wall.out()) == 1


def test_a_ticket_goes_with_its_pod(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.post(probes=("pod-1",))
    wall["pod-1"].leave()
    assert not wall.store.exists(EJECTED, TICKETS, PROBES)
    wall["pod-1"].post()
    first.post()
    assert wall.out() == {}, "it has begun anew"


def test_what_is_left_must_bear_the_demand(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    for each in sidecars:
        each.set(capacity=100.0, demand=68.0)  # 0.85 x 800 bear 680
    first = sidecars[0]
    assert [first.vote("pod-1"), first.vote("pod-2")] == ["granted", "granted"]
    first.post(uneject=("pod-1", "pod-2"))
    sidecars[3].set(demand=68.1)
    assert [first.vote("pod-1"), first.vote("pod-2")] == ["granted", "capacity"]


@pytest.mark.parametrize("state", ["down", "draining"])
def test_who_goes_bears_nothing(wall: Wall, state: str) -> None:
    sidecars = wall.pods(*TEN)
    for each in sidecars:
        each.set(capacity=100.0, demand=76.0)  # 0.85 x 900 bear 765
    sidecars[3].set(state=state)
    assert sidecars[0].vote("pod-1") == "capacity"
    sidecars[3].set(state="serving")
    assert sidecars[0].vote("pod-1") == "granted"


def test_when_half_of_the_mesh_is_suspect_nothing_is_granted(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    for pod, voter in zip(TEN[5:9], sidecars, strict=False):
        assert voter.vote(pod, alone=False, observers=9) == "votes"
    assert not sidecars[0].post().systemic
    view = sidecars[4].post(votes=(vote("pod-9"),))
    assert (view.votes, view.systemic) == ((("pod-9", "systemic"),), True)
    assert wall.out() == {}
    wall.advance(5.0)
    for pod in TEN[5:8]:
        sidecars[0].vote(pod, alone=False, observers=9)
    wall.advance(5.1)  # the others' votes are over
    assert sidecars[0].vote("pod-9") == "granted"


def test_what_is_systemic_may_come_in_one_call(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    view = first.post(votes=tuple(vote(pod) for pod in TEN[:5]))
    assert {word for _, word in view.votes} == {"systemic"}
    wall.advance(11.0)
    view = first.post(votes=tuple(vote(pod) for pod in TEN[:4]))
    assert [word for _, word in view.votes] == ["granted", "granted", "cap", "cap"]


def test_votes_that_do_not_fit_count_as_suspicion(wall: Wall) -> None:
    pods = tuple(f"pod-{i:02}" for i in range(20))
    first, *_ = wall.pods(*pods)
    view = first.post(votes=tuple(vote(pod) for pod in pods[:10]))
    assert {word for _, word in view.votes} == {"systemic"}


def test_what_is_well_again_returns_at_once(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    first.vote("pod-9")
    with wall.listening() as heard:
        assert second.post(uneject=("pod-9",)).ejected == ()
    assert [each.ejected for each in heard] == [()]
    assert first.post().held == (("pod-9", "pardoned"),)
    assert first.post().held == ()
    assert wall.out() == {}
    assert first.vote("pod-9") == "granted", "it is ill again"
    assert first.post().held == (("pod-9", "exists"),)
