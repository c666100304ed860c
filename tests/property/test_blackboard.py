"""What a mesh's blackboard promises over whatever hypothesis lets its sidecars say, in a real Valkey.

After each call: no more pods are ejected than the cap allows, by what the keys themselves hold; who is no
member has left no trace; nothing outlasts its time. A ticket is granted only for votes that were said within
10 s, or for what was held before, and never asks more of a mesh than it bears; a refusal is true.
"""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from sidecar.balance.blackboard import Ejected, Terms, View, Vote
from tests.harness.blackboard import (
    EJECTED,
    MEMBERS,
    PARDONS,
    PROBES,
    SEEN,
    SUSPECTS,
    TICKETS,
    Wall,
    blackboard,
    keys,
    vote,
)

pytestmark = pytest.mark.integration

PODS = tuple(f"pod-{i}" for i in range(8))
MAX_REPLICAS = 7
LONGEST_MS = 20_000
pods = st.sampled_from(PODS)
some = st.lists(pods, unique=True, max_size=3).map(tuple)
votes = st.builds(
    vote, pods, alone=st.booleans(), observers=st.integers(1, 8), ms=st.sampled_from((500, 5_000, 10**9))
)


class Watched(Wall):
    """It looks at the keys after each call, whoever makes it."""

    def call(self, arguments: tuple[bytes, ...], *, own_time: bool = False) -> View:
        view = super().call(arguments, own_time=own_time)
        self.look()
        assert len(self.ejected & self.up) <= self.cap
        assert self.seen == set(self.states)
        assert len(self.seen) <= MAX_REPLICAS
        assert self.ejected <= self.seen
        assert self.probers.keys() | self.tickets <= self.ejected
        assert self.suspects <= self.seen - self.ejected
        assert {each.pod for each in view.members} == self.seen
        assert {each.pod for each in view.ejected} == self.ejected
        assert all(0 <= each.age_ms <= 5000 for each in view.members)
        assert all(0 < each.remaining_ms <= LONGEST_MS for each in view.ejected)
        return view

    def look(self) -> None:
        """What the keys hold."""
        with self.store.pipeline() as asked:
            asked.hgetall(MEMBERS).hgetall(PROBES).hkeys(TICKETS)
            asked.zrange(SEEN, 0, -1).zrange(EJECTED, 0, -1).zrange(SUSPECTS, 0, -1)
            members, probes, *names = asked.execute()
        self.tickets, self.seen, self.ejected, self.suspects = ({pod.decode() for pod in of} for of in names)
        lines = {pod.decode(): record.partition(b"\n")[0].decode() for pod, record in members.items()}
        words = {pod: line.split() for pod, line in lines.items()}
        self.states = {pod: (word, float(has), float(wants)) for pod, (_, word, has, wants) in words.items()}
        self.up = {pod for pod, (state, *_) in self.states.items() if state != "down"}
        self.cap = max(1 if len(self.up) >= 3 else 0, len(self.up) * self.terms.max_percent // 100)
        leases = {pod.decode(): lease.decode().split() for pod, lease in probes.items()}
        self.probers = {
            pod: holder if int(until) > self.now and holder in self.seen else ""
            for pod, (until, holder) in leases.items()
        }


class Machine(RuleBasedStateMachine):
    wall: Watched

    @initialize(joined=st.integers(0, len(PODS)), percent=st.sampled_from((0, 20, 40, 100)))
    def begin(self, joined: int, percent: int) -> None:
        self.wall.lose()
        self.wall = Watched(self.wall.store)
        self.wall.look()
        self.said: dict[str, dict[str, float]] = {}  # target -> observer -> when it last voted
        self.pardoned: set[str] = set()
        self.ruled(percent)
        for pod in PODS[:joined]:
            self.checked(pod, self.wall[pod].post())

    def ruled(self, percent: int) -> None:
        self.wall.terms = Terms(max_replicas=MAX_REPLICAS, max_percent=percent, longest_ms=LONGEST_MS)

    # What happens.

    @rule(pod=pods, state=st.sampled_from(("serving", "serving", "down", "draining")))
    def changes(self, pod: str, state: str) -> None:
        self.checked(pod, self.wall[pod].set(state=state))

    @rule(pod=pods, capacity=st.sampled_from((0.0, 100.0)), demand=st.sampled_from((0.0, 50.0, 80.0)))
    def works(self, pod: str, capacity: float, demand: float) -> None:
        self.checked(pod, self.wall[pod].set(capacity=capacity, demand=demand))

    @rule(pod=pods, cast=st.lists(votes, min_size=1, max_size=3, unique_by=lambda each: each.pod))
    def suspects(self, pod: str, cast: list[Vote]) -> None:
        before = self.wall.ejected
        view = self.wall[pod].post(votes=tuple(cast))
        words = dict(view.votes)
        if not view.full:
            for each in cast:
                self.said.setdefault(each.pod, {})[pod] = self.wall.monotonic()
        for each in cast:
            if words.get(each.pod) == "granted":
                assert each.pod not in before
                needed = 1 if each.alone else min(3, -(-each.observers // 3))
                assert len(self.voters(each.pod)) >= needed
                assert {*self.ticket(view, each.pod).voters} <= self.voters(each.pod)
                self.pardoned.discard(each.pod)
        self.checked(pod, view, grants="granted" in words.values())
        self.check_words(view)

    @rule(pod=pods, ill=pods)
    def is_sure(self, pod: str, ill: str) -> None:
        """What ejects most often."""
        self.suspects(pod, [vote(ill, ms=10_000)])

    @rule(pod=pods, well=some)
    def finds_well(self, pod: str, well: tuple[str, ...]) -> None:
        before = self.wall.ejected
        view = self.wall[pod].post(uneject=well)
        if not view.full:
            self.pardoned |= set(well) & before
            assert not {ticket.pod for ticket in view.ejected} & set(well)
        self.checked(pod, view)

    @rule(pod=pods, wanted=some)
    def probes(self, pod: str, wanted: tuple[str, ...]) -> None:
        before = self.wall.probers
        view = self.wall[pod].post(probes=wanted)
        for target, holder in self.wall.probers.items():
            assert holder in (before.get(target), pod) or not before.get(target)
        self.checked(pod, view)

    @rule(pod=pods)
    def leaves(self, pod: str) -> None:
        view = self.wall[pod].leave()
        assert pod not in {each.pod for each in view.members}

    @rule(seconds=st.sampled_from((0.001, 0.5, 1.0, 3.0, 6.0)), silent=some)
    def time_passes(self, seconds: float, silent: tuple[str, ...]) -> None:
        self.wall.advance(seconds, silent=silent)

    @rule(seconds=st.sampled_from((4.0, 6.0, 30.0)), pod=pods)
    def the_server_stands_still(self, seconds: float, pod: str) -> None:
        self.wall.now += round(seconds * 1000)
        self.checked(pod, self.wall[pod].post())

    @rule(seconds=st.sampled_from((-100.0, 100.0)), pod=pods)
    def the_clock_jumps(self, seconds: float, pod: str) -> None:
        self.wall.jump(seconds)
        self.pardoned.clear()  # it may have been forgotten
        self.checked(pod, self.wall[pod].post())

    @rule(lost=st.sampled_from((None, *keys("demo"))), pod=pods)
    def keys_are_lost(self, lost: str | None, pod: str) -> None:
        if lost is None:
            self.wall.lose()
        else:
            self.wall.store.delete(lost)
        if lost in (None, PARDONS):
            self.pardoned.clear()
        self.checked(pod, self.wall[pod].post())

    @rule(percent=st.sampled_from((0, 20, 40, 100)), pod=pods)
    def the_percentage_changes(self, percent: int, pod: str) -> None:
        self.ruled(percent)
        self.checked(pod, self.wall[pod].post())

    # What is promised.

    def checked(self, pod: str, view: View, *, grants: bool = False) -> None:
        """After a call of `pod` that may have granted something."""
        wall = self.wall
        assert view.full is (pod not in wall.states)
        assert not wall.ejected & self.pardoned
        if grants or any(word == "granted" for _, word in view.held):
            out, states = wall.ejected & wall.up, wall.states
            stay = [has for each, (state, has, _) in states.items() if state == "serving" and each not in out]
            assert sum(stay) * 0.85 >= sum(wants for *_, wants in states.values())
            assert len(out) < len(wall.up) / 2

    def check_words(self, view: View) -> None:
        wall = self.wall
        out, up = wall.ejected & wall.up, wall.up
        for target, word in view.votes:
            if word == "absent":
                assert target not in up
            elif word == "exists":
                assert target in wall.ejected
            elif word == "cap":
                assert len(out) + 1 > wall.cap or len(up) <= 2
            elif word == "systemic":
                assert len(set(view.suspects) | out) >= len(up) / 2
            else:
                assert word in ("granted", "votes", "capacity"), word

    def voters(self, target: str) -> set[str]:
        said, now, alive = self.said.get(target, {}), self.wall.monotonic(), self.wall.states
        return {pod for pod, at in said.items() if now - at < 10 and pod in alive}

    @staticmethod
    def ticket(view: View, pod: str) -> Ejected:
        return next(each for each in view.ejected if each.pod == pod)


@pytest.fixture(scope="module")
def wall() -> Iterator[Watched]:
    with blackboard() as found:
        yield Watched(found.store)


def test_blackboard(wall: Watched) -> None:
    Machine.wall = wall
    chosen = settings(settings.default, max_examples=settings.default.max_examples // 2)
    run_state_machine_as_test(Machine, settings=chosen)
