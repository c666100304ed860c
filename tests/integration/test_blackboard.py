"""The rules of `blackboard.lua`, one by one, in a real Valkey whose time the test decides."""

import time
from collections.abc import Iterator

import msgspec
import pytest
import redis

from sidecar.balance.blackboard import LEFT, Held, Post, Terms, encode
from tests.harness.blackboard import (
    EJECTED,
    MEMBERS,
    MESH,
    PROBES,
    SEEN,
    SUSPECTS,
    TICKETS,
    VOTES,
    Wall,
    blackboard,
    keys,
    vote,
)

pytestmark = pytest.mark.integration

TEN = tuple(f"pod-{i}" for i in range(10))  # two of them may be ejected


@pytest.fixture(scope="module")
def server() -> Iterator["redis.Redis"]:
    with blackboard() as wall:
        yield wall.store


@pytest.fixture
def wall(server: "redis.Redis") -> Wall:
    server.flushall()
    return Wall(server)


def out(wall: Wall) -> dict[str, float]:
    """Who is ejected, as the keys have it, and for how many seconds more."""
    found = wall.store.zrange(EJECTED, 0, -1, withscores=True)
    return {pod.decode(): (ends - wall.now) / 1000 for pod, ends in found}


# Members.


def test_members_know_each_other(wall: Wall) -> None:
    a, b = wall.pods("a", "b")
    a.set(payload=b"\xff\x00\n a", state="down", capacity=1.5, demand=0.25)
    wall.now += 300
    view = b.post()
    assert [(each.pod, each.age_ms, each.state, each.payload) for each in view.members] == [
        ("a", 300, "down", b"\xff\x00\n a"),
        ("b", 0, "serving", b"payload of b"),
    ]
    assert (view.members[0].capacity, view.members[0].demand) == (1.5, 0.25)
    assert view.pods == 1
    assert view.at_ms == wall.now


def test_who_is_silent_for_five_seconds_is_gone(wall: Wall) -> None:
    _, b = wall.pods("a", "b")
    wall.advance(5.0, silent=("a",))
    assert [each.pod for each in b.post().members] == ["a", "b"]
    wall.now += 1
    assert [each.pod for each in b.post().members] == ["b"]
    assert (wall.store.hkeys(MEMBERS), wall.store.zrange(SEEN, 0, -1)) == ([b"b"], [b"b"])


def test_who_leaves_is_gone_at_once(wall: Wall) -> None:
    a, b = wall.pods("a", "b")
    with wall.listening() as heard:
        assert [each.pod for each in a.leave().members] == ["b"]
        a.leave()
    assert [(each.member.pod, each.member.state) for each in heard if each.member] == [("a", LEFT)]
    assert [each.pod for each in b.post().members] == ["b"]
    assert wall.store.hkeys(MEMBERS) == [b"b"]


def test_a_newcomer_beyond_the_bound_is_told_so_and_leaves_no_trace(wall: Wall) -> None:
    wall.terms = Terms(max_replicas=2)
    a, _ = wall.pods("a", "b")
    view = wall["c"].post(votes=(vote("a"),), retries=1.0)
    assert view.full
    assert [each.pod for each in view.members] == ["a", "b"]
    assert view.votes == ()
    assert view.retries == 0
    assert wall.store.hkeys(MEMBERS) == [b"a", b"b"]
    assert not wall.store.exists(VOTES, SUSPECTS)
    assert not a.post().full
    a.leave()
    assert not wall["c"].post().full


def test_a_payload_is_bounded(wall: Wall) -> None:
    (a,) = wall.pods("a")
    a.post(payload=b"x" * 4096)
    now, _, *rest = encode(MESH, "a", a.said, wall.terms)
    with pytest.raises(redis.ResponseError, match="4096"):
        wall.call((now, b"x" * 4097, *rest))


def test_a_change_of_state_is_published_and_a_heartbeat_is_not(wall: Wall) -> None:
    with wall.listening() as heard:
        a = wall["a"]
        a.post()
        a.set(payload=b"another", capacity=5.0)
        a.set(state="draining")
        a.post()
        a.post(urgent=True, payload=b"\x00now\n")
    members = [each.member for each in heard]
    assert [(each.pod, each.state, each.payload) for each in members if each] == [
        ("a", "serving", b"payload of a"),
        ("a", "draining", b"another"),
        ("a", "draining", b"\x00now\n"),
    ]
    assert heard[0].at_ms == wall.now


def test_a_mesh_that_is_gone_leaves_nothing_behind(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.post(votes=(vote("pod-1"), vote("pod-2"), vote("pod-3")), retries=1.0, probes=("pod-1",))
    first.post(uneject=("pod-2",))
    present = [key for key in keys(MESH) if wall.store.exists(key)]
    assert present == list(keys(MESH))
    assert all(590_000 < wall.store.pttl(key) <= 600_000 for key in present)


def test_keys_that_are_lost_one_by_one_grow_again(wall: Wall) -> None:
    for key in (MEMBERS, SEEN, TICKETS):
        first, *_ = wall.pods(*TEN)
        first.vote("pod-3")
        wall.store.delete(key)
        wall.advance(2.0)
        assert len(first.post().members) == len(TEN)
        assert wall.store.zcard(SEEN) == wall.store.hlen(MEMBERS) == len(TEN)
        wall.advance(60.0)


def test_its_own_clock_is_the_only_one(wall: Wall) -> None:
    before = time.time() * 1000
    view = wall.call(encode(MESH, "a", Post(payload=b"", state="serving"), wall.terms), own_time=True)
    assert before - 1 <= view.at_ms <= time.time() * 1000


def test_a_clock_that_jumps_back_wedges_nothing(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1", ms=10_000)
    first.post(votes=(vote("pod-2", alone=False, observers=9),), probes=("pod-1",))
    wall.jump(-86_400)
    wall.terms = Terms(longest_ms=20_000)
    assert [each.age_ms for each in first.post().members] == [0] * len(TEN)
    assert out(wall) == {"pod-1": 20.0}
    assert wall["pod-5"].post(probes=("pod-1",)).ejected[0].prober == "pod-5"
    wall.advance(6.0, silent=("pod-4",))
    assert len(first.post().members) == 9
    wall.advance(4.0)
    assert first.post().suspects == ()
    wall.advance(10.0)
    assert out(wall) == {}


def test_a_view_is_settled_after_two_seconds_of_heartbeats(wall: Wall) -> None:
    a, _ = wall.pods("a", "b")
    wall.advance(1.0)
    assert not a.post().settled
    wall.advance(1.0)
    assert a.post().settled
    wall.now += 2001  # nobody calls
    assert not a.post().settled
    wall.advance(2.0)
    assert a.post().settled
    wall.lose()
    assert not a.post().settled


# Tickets.


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
    assert out(wall) == {"pod-3": 300.0}


def test_a_pod_makes_its_own_ticket_longer_and_nobody_else_does(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    assert first.vote("pod-0", ms=4000) == "granted"
    assert second.vote("pod-0", ms=9000) == "exists"
    assert first.vote("pod-0", ms=3000) == "exists"
    assert out(wall) == {"pod-0": 4.0}
    with wall.listening() as heard:
        assert first.vote("pod-0", ms=9000) == "exists"
    (published,) = heard
    assert published.ejected is not None
    assert [(ticket.pod, ticket.remaining_ms) for ticket in published.ejected] == [("pod-0", 9000)]
    first.vote("pod-0", ms=10**9)
    assert out(wall) == {"pod-0": 300.0}
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


def test_a_vote_that_is_repeated_does_not_end(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    for _ in range(15):
        assert first.vote("pod-9", alone=False, observers=6) == "votes"
        wall.advance(1.0)
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
    assert out(wall).keys() == {"pod-1", "pod-2"}
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
    assert out(wall) == {"pod-1": 20.0}
    assert [each.ejected[0].pod for each in heard if each.ejected] == ["pod-1"]


def test_when_pods_go_tickets_are_released_until_the_cap_holds(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1", ms=20_000)
    first.vote("pod-2", ms=10_000)
    wall["pod-9"].leave()
    assert out(wall) == {"pod-1": 20.0}
    for pod in TEN[3:9]:
        wall[pod].leave()
    assert out(wall) == {"pod-1": 20.0}, "one of three"
    wall["pod-2"].leave()
    assert out(wall) == {}


def test_silence_shrinks_a_mesh_as_well(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.vote("pod-2")
    wall.advance(6.0, silent=("pod-8", "pod-9"))
    assert len(out(wall)) == 1


def test_another_percentage_holds_at_once(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.vote("pod-2")
    wall.terms = Terms(max_percent=10)
    first.post()
    assert len(out(wall)) == 1


def test_a_ticket_goes_with_its_pod(wall: Wall) -> None:
    first, *_ = wall.pods(*TEN)
    first.vote("pod-1")
    first.post(probes=("pod-1",))
    wall["pod-1"].leave()
    assert not wall.store.exists(EJECTED, TICKETS, PROBES)
    wall["pod-1"].post()
    first.post()
    assert out(wall) == {}, "it has begun anew"


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
    assert out(wall) == {}
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
    assert out(wall) == {}
    assert first.vote("pod-9") == "granted", "it is ill again"


# Lost keys.


def test_tickets_outlive_the_keys(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    sidecars[0].vote("pod-8", ms=20_000)
    sidecars[1].vote("pod-9", ms=2_000)
    wall.advance(0.5)
    wall.lose()
    view = sidecars[0].post()
    assert view.held == (("pod-8", "absent"),)
    wall.advance(1.0)
    assert out(wall) == {}, "who is back is too few yet: pod-8 and pod-9 come last"
    wall.advance(1.0)
    assert out(wall) == {"pod-8": 17.5}
    assert sidecars[0].post().ejected[0].voters == ("pod-0",)


def test_what_was_held_is_granted_within_the_cap_alone(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    for i in range(4):
        held = [Held(f"pod-{i + 5}", "slow", 9_000)]
        args = encode(MESH, f"pod-{i}", sidecars[i].said, wall.terms, held=held)
        assert wall.call(args).held == ((f"pod-{i + 5}", "granted" if i < 2 else "cap"),)
    assert len(out(wall)) == 2


def test_tickets_outlive_a_server_that_stood_still(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    wall.advance(3.0)
    sidecars[0].vote("pod-8", ms=60_000)
    wall.now += 20_000
    wall.advance(2.0)
    assert out(wall) == {"pod-8": 38.0}


# Probes.


def test_one_at_a_time_may_probe(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    first.vote("pod-9")
    assert second.post(probes=("pod-9", "pod-8")).ejected[0].prober == "pod-1"
    assert first.post(probes=("pod-9",)).ejected[0].prober == "pod-1"
    wall.advance(2.0)
    second.post(probes=("pod-9",))
    wall.advance(2.9)
    assert first.post(probes=("pod-9",)).ejected[0].prober == "pod-1", "it has asked again"
    wall.now += 100
    assert first.post().ejected[0].prober == ""
    assert first.post(probes=("pod-9",)).ejected[0].prober == "pod-0"
    first.leave()
    assert second.post(probes=("pod-9",)).ejected[0].prober == "pod-1"
    assert wall.store.hkeys(PROBES) == [b"pod-9"]


# Retries, the secret.


def test_the_ratio_of_retries_is_of_ten_seconds(wall: Wall) -> None:
    a, b = wall.pods("a", "b")
    wall.now += -wall.now % 1000
    a.post(origins=100.0, retries=10.5)
    view = b.post(origins=50.0)
    assert (view.origins, view.retries) == (150.0, 10.5)
    for _ in range(9):
        wall.now += 1000
        view = a.post(retries=1.0)
    assert (view.origins, view.retries) == (150.0, 19.5)
    wall.now += 1000
    view = b.post()
    assert (view.origins, view.retries) == (0.0, 9.0)
    wall.now += 60_000
    assert a.post().retries == 0


def test_the_first_secret_is_everybodys(wall: Wall) -> None:
    post = Post(payload=b"", state="serving")
    assert wall.call(encode(MESH, "a", post, wall.terms)).secret == ""
    assert wall.call(encode(MESH, "a", post, wall.terms, secret="one")).secret == "one"
    assert wall.call(encode(MESH, "b", post, wall.terms, secret="two")).secret == "one"
    assert msgspec.structs.asdict(wall.call(encode(MESH, "b", post, wall.terms)))["secret"] == "one"
