"""What bounds say of a run. Runs themselves: integration."""

from math import inf

import pytest

from mesh.bench.faults.run import verdicts
from mesh.bench.faults.trials import Bound
from tests.unit.mesh.bench.faults.runs import evidence


@pytest.mark.parametrize(
    ("bound", "met"),
    [
        (Bound(says="", figure=lambda run: 1.0, most=1), True),
        (Bound(says="", figure=lambda run: 1.1, most=1), False),
        (Bound(says="", figure=lambda run: 0.9, least=0.9), True),
        (Bound(says="", figure=lambda run: 0.8, least=0.9), False),
        (Bound(says="", figure=lambda run: inf, most=1), False),
        (Bound(says="", figure=lambda run: None, most=1), None),
        (Bound(says="", figure=lambda run: None, least=1), None),
        (Bound(says="", figure=lambda run: 1.0, most=lambda run: run.cap), True),
        (Bound(says="", figure=lambda run: 2.0, most=lambda run: run.cap), False),
    ],
)
def test_a_bound_is_met_or_not_or_nobody_can_say(bound: Bound, met: bool | None) -> None:
    (verdict,) = verdicts((bound,), evidence(cap=1))
    assert verdict.met is met
