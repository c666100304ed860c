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
    TEN,
    TICKETS,
    VOTES,
    Wall,
    blackboard,
    keys,
    vote,
)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server() -> Iterator["redis.Redis"]:
    with blackboard() as wall:
        yield wall.store


@pytest.fixture
def wall(server: "redis.Redis") -> Wall:
    server.flushall()
    return Wall(server)


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
    for key in keys(MESH):
        first, *_ = wall.pods(*TEN)
        first.vote("pod-3")
        wall.store.delete(key)
        wall.advance(2.0)
        assert len(first.post().members) == len(TEN)
        assert wall.store.zcard(SEEN) == wall.store.hlen(MEMBERS) == len(TEN)
        assert {*wall.store.hkeys(TICKETS)} <= {*wall.store.zrange(EJECTED, 0, -1)}
        wall.advance(60.0)


def test_what_was_said_of_lost_tickets_and_suspects_goes_with_them(wall: Wall) -> None:
    first, second, *_ = wall.pods(*TEN)
    first.post(votes=(vote("pod-3"), vote("pod-4", alone=False, observers=9)))
    first.post(probes=("pod-3",))
    assert wall.store.exists(TICKETS, PROBES, VOTES) == 3
    wall.store.delete(EJECTED, SUSPECTS)
    second.post()
    assert wall.store.exists(TICKETS, PROBES, VOTES) == 0


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
    assert wall.out() == {"pod-1": 20.0}
    assert wall["pod-5"].post(probes=("pod-1",)).ejected[0].prober == "pod-5"
    wall.advance(6.0, silent=("pod-4",))
    assert len(first.post().members) == 9
    wall.advance(4.0)
    assert first.post().suspects == ()
    wall.advance(10.0)
    assert wall.out() == {}


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
    assert wall.out() == {}, "who is back is too few yet: pod-8 and pod-9 come last"
    wall.advance(1.0)
    assert wall.out() == {"pod-8": 17.5}
    assert sidecars[0].post().ejected[0].voters == ("pod-0",)


def test_what_was_held_is_granted_within_the_cap_alone(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    for i in range(4):
        held = [Held(f"pod-{i + 5}", "slow", 9_000)]
        args = encode(MESH, f"pod-{i}", sidecars[i].said, wall.terms, held=held)
        assert wall.call(args).held == ((f"pod-{i + 5}", "granted" if i < 2 else "cap"),)
    assert len(wall.out()) == 2


def test_tickets_outlive_a_server_that_stood_still(wall: Wall) -> None:
    sidecars = wall.pods(*TEN)
    wall.advance(3.0)
    sidecars[0].vote("pod-8", ms=60_000)
    wall.now += 20_000
    wall.advance(2.0)
    assert wall.out() == {"pod-8": 38.0}


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
