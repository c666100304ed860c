"""What is said to a blackboard and heard from it; the script itself has tests that need a server."""

import msgspec
import pytest

from sidecar.balance.blackboard import (
    EACH,
    LEFT,
    Ejected,
    Held,
    Member,
    Memory,
    Notice,
    Post,
    Terms,
    View,
    Vote,
    cap,
    channel,
    decode,
    decode_notice,
    encode,
    keys,
)

POST = Post(payload=b"\xff payload", state="serving", capacity=2.0, demand=1.0)
TICKET = Ejected("b", 5_000, "slow", ("a", "c"), "c")
HEAD = {
    "at_ms": 10_000,
    "settled": True,
    "full": False,
    "suspects": ["a", "b", "d", "gone"],
    "votes": [["b", "granted"]],
    "held": [],
    "origins": 3,
    "retries": 0.5,
    "secret": "s",
}


def answer(**head: object) -> list[object]:
    return [
        msgspec.msgpack.encode(HEAD | head),
        [b"a", b"9700 serving 1.5 2\n\xff\n payload", b"b", b"10001 serving 1 0\n", b"d", b"1 down 0 0\n"],
        [b"b", b"15000", b"d", b"16000"],
        [b"b", b"slow a c"],
        [b"b", b"10001 c", b"d", b"10000 a"],
    ]


def notice(head: dict[str, object], record: bytes = b"") -> bytes:
    packed = msgspec.msgpack.encode({"at_ms": 10_000} | head)
    return len(packed).to_bytes(4) + packed + record


def view(**parts: object) -> View:
    return msgspec.structs.replace(decode(answer()), **parts)


def test_a_mesh_has_one_slot() -> None:
    assert {key.partition("}")[0] for key in (*keys("demo"), channel("demo"))} == {"hg1:{demo"}
    assert len(set(keys("demo"))) == 10


@pytest.mark.parametrize(
    ("pods", "percent", "most"), [(0, 20, 0), (2, 20, 0), (2, 50, 1), (3, 0, 1), (9, 20, 1), (10, 20, 2)]
)
def test_how_many_may_be_ejected(pods: int, percent: int, most: int) -> None:
    assert cap(pods, percent) == most


def test_what_is_said() -> None:
    votes = (Vote("b", "slow", True, 1, 30_000),)
    post = msgspec.structs.replace(POST, votes=votes, uneject=("c",), probes=("d",), retries=0.5, urgent=True)
    when, payload, ask, where = encode(
        "demo", "a", post, Terms(), held=[Held("e", "hung", 7)], secret="s", leave=True
    )
    assert (when, payload, where) == (b"", b"\xff payload", b"hg1:{demo}:members")
    assert msgspec.msgpack.decode(ask) == {
        "pod": "a",
        "leave": True,
        "urgent": True,
        "state": "serving",
        "capacity": 2.0,
        "demand": 1.0,
        "max_replicas": 256,
        "max_percent": 20,
        "longest_ms": 300_000,
        "lease_ms": 5_000,
        "suspects": 0,
        "votes": [["b", "slow", True, 1, 30_000]],
        "uneject": ["c"],
        "held": [["e", "hung", 7]],
        "probes": ["d"],
        "origins": 0.0,
        "retries": 0.5,
        "secret": "s",
    }


def test_what_does_not_fit_into_one_call() -> None:
    many = tuple(f"pod-{i}" for i in range(20))
    votes = tuple(Vote(pod, "slow", True, 1, 1) for pod in many)
    post = msgspec.structs.replace(POST, votes=votes, uneject=many, probes=many)
    _, _, packed, _ = encode("demo", "a", post, Terms(), held=[Held(pod, "slow", 1) for pod in many])
    ask = msgspec.msgpack.decode(packed)
    assert {len(ask[part]) for part in ("votes", "uneject", "probes", "held")} == {EACH}
    assert ask["suspects"] == 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": b"x" * 4097},
        {"state": ""},
        {"state": "not serving"},
        {"state": "serving\n"},
        {"capacity": float("nan")},
        {"demand": float("inf")},
        {"origins": -1.0},
        {"retries": float("nan")},
        {"votes": (Vote("b", "too slow", True, 1, 1),)},
        {"votes": (Vote("a b", "slow", True, 1, 1),)},
        {"votes": (Vote("b", "slow", True, 0, 1),)},
    ],
)
def test_what_is_no_post_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"payload|word|amount|observers"):
        encode("demo", "a", msgspec.structs.replace(POST, **wrong), Terms())


def test_what_is_told() -> None:
    found = decode(answer())
    assert found.members == (
        Member("a", 300, "serving", 1.5, 2.0, b"\xff\n payload"),
        Member("b", 0, "serving", 1.0, 0.0, b""),
        Member("d", 9_999, "down", 0.0, 0.0, b""),
    )
    assert found.ejected == (TICKET, Ejected("d", 6_000, "", (), ""))
    assert found.suspects == ("a",), "neither ejected nor down nor gone"
    assert (found.votes, found.origins, found.retries, found.secret) == ((("b", "granted"),), 3.0, 0.5, "s")
    assert found.pods == 2
    assert found.systemic


def test_one_suspect_is_not_systemic() -> None:
    assert not decode(answer(suspects=[])).systemic


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        None,
        [b"\xc1", [], [], [], []],
        [*answer()[:4]],
        [answer()[0], [b"a"], [], [], []],
        [answer()[0], [b"a", b"no line"], [], [], []],
        [answer()[0], [b"\xff", b"1 up 0 0\n"], [], [], []],
        [answer()[0], [b"a", b"1 up 0 lots\n"], [], [], []],
        [answer()[0], [], [b"b", b"soon"], [], []],
        [answer()[0], 7, [], [], []],
    ],
)
def test_what_is_no_answer_is_refused(wrong: list[object]) -> None:
    with pytest.raises(ValueError, match="not the blackboard's answer"):
        decode(wrong)


def test_notices() -> None:
    assert decode_notice(notice({"pod": "a"}, b"9999 draining 1 2\n\xff")) == Notice(
        at_ms=10_000, member=Member("a", 1, "draining", 1.0, 2.0, b"\xff")
    )
    left = decode_notice(notice({"pod": "a"})).member
    assert left is not None
    assert (left.pod, left.state) == ("a", LEFT)
    tickets = {"ejected": ["b", "15000"], "tickets": ["b", "slow a c"], "probes": ["b", "12000 c"]}
    assert decode_notice(notice(tickets)) == Notice(at_ms=10_000, ejected=(TICKET,))
    assert decode_notice(notice({"ejected": []})).ejected == ()


@pytest.mark.parametrize(
    "wrong",
    [b"", b"\0\0", b"\0\0\0\1\xc1", b"\0\0\0\1\x90", notice({"pod": "a"}, b"\xff"), notice({"pod": 7})],
)
def test_what_is_no_notice_is_refused(wrong: bytes) -> None:
    with pytest.raises(ValueError, match="not a notice"):
        decode_notice(wrong)


# What is remembered.


def test_tickets_we_voted_for_are_remembered_until_they_end() -> None:
    memory = Memory()
    memory.heard("c", view(), 100.0)
    assert memory.held(102.0) == [Held("b", "slow", 3_000)]
    memory.heard("c", view(ejected=()), 103.0)
    assert memory.held(104.0) == [Held("b", "slow", 1_000)], "lost, not ended"
    assert memory.held(105.0) == []


def test_what_others_voted_for_is_theirs() -> None:
    memory = Memory()
    memory.heard("d", view(), 100.0)
    assert memory.held(100.0) == []


def test_what_ended_on_purpose_is_forgotten() -> None:
    memory = Memory()
    memory.heard("c", view(), 100.0)
    memory.heard("c", view(ejected=(), held=(("b", "absent"),)), 101.0)
    assert len(memory.held(101.0)) == 1
    memory.heard("c", view(ejected=(), held=(("b", "pardoned"),)), 101.0)
    assert memory.held(101.0) == []
    memory.heard("c", view(), 102.0)
    memory.forget(("b", "x"))
    assert memory.held(102.0) == []


def test_the_latest_are_remembered() -> None:
    memory = Memory()
    tickets = tuple(msgspec.structs.replace(TICKET, pod=f"pod-{i}") for i in range(EACH + 2))
    memory.heard("c", view(ejected=tickets), 100.0)
    memory.heard("c", view(ejected=tickets[:1]), 100.0)
    assert [each.pod for each in memory.held(100.0)] == [*(f"pod-{i}" for i in range(3, EACH + 2)), "pod-0"]
