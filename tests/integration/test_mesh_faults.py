"""What callers and members of a mesh see of an engine that does wrong: real processes, one promise a test."""

import os
import re
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.harness.meshes import Member, Mesh, Stream, mesh
from tests.harness.processes import wait_until
from tests.harness.sidecars import frozen

pytestmark = pytest.mark.integration

TOKENS = 60


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("mesh")) as started:
        yield started
        for member in started.members:
            member.gate.wait_until_idle()


@pytest.fixture
def three(healed: Mesh) -> Iterator[Mesh]:
    """As it was found: it recovers from whatever a test does to it."""
    yield healed
    healed.recover()


def answered(streams: list[Stream]) -> list[tuple[int, bytes]]:
    """Those that were not served whole: there should be none."""
    return [(each.status, each.body[-300:]) for each in streams if not each.end().is_whole]


def earn_retries(asked: Mesh) -> None:
    """What had to move in the last seconds was taken from the retries of the next ones."""
    for _ in range(3):
        asking = [stream for each in asked.members for stream in each.streams(12, max_tokens=TOKENS)]
        assert answered(asking) == []


def wait_until_back(member: Member, **members: Any) -> int:
    """Ask it until its engine works for it again; how often that was. Every answer is whole."""
    asked = 0

    def is_back() -> bool:
        nonlocal asked
        asked += 1
        assert answered([member.stream(max_tokens=4, **members)]) == []
        return bool(member.sees()[member.name]["state"] == "serving")

    member.gate.process.wait_for(is_back, what=f"{member.name} is back")
    return asked


# An engine that is gone, or stands still.


def test_of_an_engine_that_is_killed_only_begun_streams_break(three: Mesh) -> None:
    broken = three.members[0]
    begun = broken.streams(8, max_tokens=400)
    for stream in begun:
        stream.begin()
    os.kill(broken.pod.process.pid, signal.SIGSTOP)
    waiting = broken.streams(8, max_tokens=TOKENS)
    broken.wait_until_it_has(16)
    broken.pod.process.kill()
    for stream in begun:
        assert not stream.end().is_whole
        assert stream.is_cut
        assert stream.error["code"] == "upstream_reset"
    assert answered(waiting) == []
    assert answered(broken.streams(4, max_tokens=TOKENS)) == []
    three.wait_until_seen(broken, "down")
    streams = [stream for each in three.members for stream in each.streams(3, max_tokens=4)]
    assert answered(streams) == []
    assert [broken.decision(each)["attempts"] for each in streams[:3]] == [1] * 3
    assert not broken.serves()

    broken.start_engine()
    three.wait_until_seen(broken, "serving", by=three.members)
    wait_until(broken.serves, what="its engine works for it")


def test_an_engine_that_hangs_is_left_though_its_health_is_ok(three: Mesh) -> None:
    broken = three.members[0]
    begun = broken.streams(3, max_tokens=TOKENS)
    for stream in begun:
        stream.begin()
    broken.fault("hang", health="ok")
    waiting = broken.streams(6, max_tokens=TOKENS)
    assert answered(waiting) == []
    assert broken.gate.metric("headgate_attempts_total", to="engine", outcome="moved") > 0
    assert broken.gate.metric("headgate_attempts_total", to="engine", outcome="first_token_timeout") == 0
    three.wait_until_seen(broken, "down", by=three.members)
    own = broken.sees()[broken.name]
    assert (own["hung"], own["healthy"]) == (True, True)
    assert not broken.serves()

    broken.heal()
    assert answered(begun) == []
    three.wait_until_seen(broken, "serving", by=three.members)
    wait_until(broken.serves, what="its engine works for it")


def test_an_engine_that_hung_is_tried_again_though_nothing_runs_there(three: Mesh) -> None:
    broken = three.members[0]
    broken.fault("hang", health="ok")
    assert answered(broken.streams(2, max_tokens=4)) == []
    three.wait_until_seen(broken, "down")
    broken.heal()
    wait_until_back(broken)
    wait_until(broken.serves, what="its engine works for it")


# An engine that answers, and badly.


def test_errors_reach_nobody_and_eject_their_engine_until_it_does_well(three: Mesh) -> None:
    earn_retries(three)
    broken = three.members[0]
    ejections = broken.gate.metric("headgate_outlier_ejections_total", why="consecutive_5xx")
    broken.fault("status", status=500)

    def is_ejected() -> bool:
        assert answered(broken.streams(5, max_tokens=TOKENS)) == []
        return bool(broken.sees()[broken.name]["state"] == "ejected")

    wait_until(is_ejected, what="it is ejected")
    three.wait_until_seen(broken, "ejected")
    for member in three.members:
        seen = member.sees()[broken.name]
        assert (seen["why"], seen["voters"]) == ("consecutive_5xx", [broken.name])
        assert seen["ejected"]
    assert broken.gate.metric("headgate_outlier_ejections_total", why="consecutive_5xx") == ejections + 1

    # On probation it gets one request, does no better, and stays out.
    before = broken.attempts("engine")

    def is_tried() -> bool:
        assert answered(broken.streams(1, max_tokens=4)) == []
        return broken.attempts("engine") > before

    wait_until(is_tried, what="its engine is tried")
    assert broken.sees()[broken.name]["state"] == "ejected"

    broken.heal()
    before = broken.attempts("engine")
    wait_until_back(broken)
    assert broken.attempts("engine") >= before + 3
    wait_until(broken.serves, what="its engine works for it")


def test_of_three_engines_one_is_ejected_when_two_do_badly(three: Mesh) -> None:
    earn_retries(three)
    bad = three.members[:2]
    for member in bad:
        member.fault("status", status=500)

    def check_cap() -> None:
        seen = [[pod for pod, entry in member.sees().items() if entry["ejected"]] for member in three.members]
        assert all(len(each) <= 1 for each in seen), seen

    def is_denied() -> bool:
        """One is out, and so the other may not go, and is voted for again."""
        assert answered([stream for member in bad for stream in member.streams(3, max_tokens=4)]) == []
        check_cap()
        denied = "is not ejected (consecutive_5xx)"
        return any(member.gate.process.text().count(denied) >= 2 for member in bad)

    wait_until(is_denied, what="one is ejected, and the other not")
    for member in bad:
        member.heal()
    for member in bad:
        wait_until_back(member)


@pytest.mark.parametrize(
    ("kind", "members"),
    [
        ("status", {"status": 503}),
        ("empty", {"done": False}),
        ("empty", {"done": True}),
        ("reset", {"after_bytes": 0}),
        ("reset", {"after_bytes": 300}),
        ("framing", {"what": "head"}),
    ],
    ids=str,
)
def test_an_answer_that_fails_before_its_first_token_comes_whole_from_another_pod(
    three: Mesh, kind: str, members: dict[str, Any]
) -> None:
    broken = three.members[0]
    broken.fault(kind, **members)
    stream = broken.stream(max_tokens=TOKENS).end()
    decision = broken.decision(stream)
    broken.heal()
    assert stream.is_whole, stream.body
    assert stream.body.count(b'"content":') == TOKENS + 1  # the first has an empty text
    assert len(set(re.findall(rb'"id":"([^"]+)"', stream.body))) == 1, "of one attempt alone"
    assert (decision["status"], decision["attempts"]) == (200, 2)
    assert decision["endpoint"] != broken.sees()[broken.name]["address"]
    # What has failed is not asked again at once, and then it is.
    wait_until(broken.serves, what="its engine works for it")


@pytest.mark.parametrize(
    ("kind", "members", "code"),
    [
        ("reset", {"after_bytes": 4000}, "upstream_reset"),
        ("framing", {"what": "chunk_size"}, "upstream_protocol"),
    ],
    ids=str,
)
def test_a_stream_that_breaks_off_ends_with_an_error_and_never_looks_whole(
    three: Mesh, kind: str, members: dict[str, Any], code: str
) -> None:
    broken = three.members[0]
    stream = broken.stream(max_tokens=TOKENS)
    stream.begin()
    broken.fault(kind, **members)
    stream.end()
    broken.heal()
    assert b"[DONE]" not in stream.body
    assert stream.error["code"] == code
    assert stream.is_cut
    assert broken.decision(stream)["attempts"] == 1
    wait_until(broken.serves, what="its engine works for it")


# What is nobody's fault.


def test_what_a_caller_does_wrong_is_told_once_and_counts_against_nobody(three: Mesh) -> None:
    asked = three.members[0]
    before = asked.attempts("engine"), asked.attempts("peer")
    suspicions = asked.gate.metric("headgate_outlier_suspicions_total")
    streams = asked.streams(8, max_tokens=-1)
    assert [stream.end().status for stream in streams] == [400] * 8
    assert (asked.attempts("engine"), asked.attempts("peer")) == (before[0] + 8, before[1])
    assert [asked.decision(stream)["attempts"] for stream in streams] == [1] * 8
    assert asked.gate.metric("headgate_outlier_suspicions_total") == suspicions
    assert asked.sees()[asked.name]["state"] == "serving"


def test_who_leaves_during_a_second_attempt_leaves_nothing_behind(three: Mesh) -> None:
    broken, *others = three.members
    broken.fault("status", status=500)
    with frozen(others[0].pod), frozen(others[1].pod):
        stream = broken.stream(max_tokens=TOKENS)
        wait_until(lambda: sum(each.gate.gauges()["in_flight"] for each in others) == 1, what="a peer has it")
        stream.leave()
        for member in three.members:
            member.gate.wait_until_idle()
    broken.heal()
    assert broken.gate.wait_for_decision("client_gone")["attempts"] == 2
    for member in three.members:
        member.pod.wait_until_generating(0)
