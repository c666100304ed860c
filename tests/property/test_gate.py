"""The gate against the plainest model of it: a list of those inside and a list of those who wait.

Nobody overtakes, nobody is in two places, nobody who left is let in, and no slot is idle once the
gate was asked who may enter.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.flow.gate import ENTERED, FULL, QUEUED, Gate


class Machine(RuleBasedStateMachine):
    @initialize(limit=st.integers(1, 4), max_queue=st.integers(0, 4))
    def build(self, limit: int, max_queue: int) -> None:
        self.gate: Gate[int] = Gate(limit, max_queue)
        self.inside: list[int] = []
        self.waiting: list[int] = []
        self.members = 0
        self.now = 0.0
        self.settled = True  # next_in has said that nobody else may enter

    @rule()
    def arrive(self) -> None:
        self.members += 1
        outcome = self.gate.arrive(self.members)
        if len(self.inside) < self.gate.limit and not self.waiting:
            assert outcome == ENTERED
            self.inside.append(self.members)
        elif len(self.waiting) < self.gate.max_queue:
            assert outcome == QUEUED
            self.waiting.append(self.members)
        else:
            assert outcome == FULL

    @precondition(lambda self: self.members)
    @rule(data=st.data(), seconds=st.floats(0, 10))
    def leave(self, data: st.DataObject, seconds: float) -> None:
        """Whoever it is: inside, waiting, refused, or gone before."""
        member = data.draw(st.integers(1, self.members))
        self.now += seconds
        self.gate.leave(member, self.now)
        for place in (self.inside, self.waiting):
            if member in place:
                place.remove(member)
        self.settled = False

    @rule()
    def let_in_all_who_may(self) -> None:
        while (member := self.gate.next_in()) is not None:
            assert member == self.waiting.pop(0), "somebody overtook"
            self.inside.append(member)
        self.settled = True

    @rule(limit=st.integers(1, 4), max_queue=st.integers(0, 4))
    def reload(self, limit: int, max_queue: int) -> None:
        """Nobody is thrown out of a gate that shrinks."""
        self.settled = self.settled and limit <= self.gate.limit
        self.gate.limit, self.gate.max_queue = limit, max_queue

    @invariant()
    def counts_are_those_of_the_model(self) -> None:
        assert (self.gate.in_flight, self.gate.queued) == (len(self.inside), len(self.waiting))

    @invariant()
    def no_slot_is_idle_while_someone_waits(self) -> None:
        if self.settled and self.waiting:
            assert len(self.inside) >= self.gate.limit

    @invariant()
    def a_wait_is_predicted_for_everyone(self) -> None:
        assert self.gate.wait_s() >= 0.0


TestGate = Machine.TestCase
