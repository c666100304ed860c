"""What counts, as what; each case beside the rule of the file head that it is an example of."""

import pytest

from sidecar.balance.outcome import NOTHING, SUCCESS, Ending, Outcome, classify, penalty_s


@pytest.mark.parametrize(
    ("status", "is_refusal", "outcome"),
    [
        (200, False, SUCCESS),
        (200, True, SUCCESS),
        (204, False, SUCCESS),
        (302, False, SUCCESS),
        (399, False, SUCCESS),
        (400, False, NOTHING),  # 4
        (404, False, NOTHING),
        (429, False, NOTHING),
        (429, True, NOTHING),  # 3
        (499, False, NOTHING),  # 5
        (503, True, NOTHING),
        (529, True, NOTHING),
        (503, False, Outcome(503)),
        (529, False, Outcome(529)),
        (500, False, Outcome(500)),
        (500, True, Outcome(500)),
        (502, True, Outcome(502)),  # a peer's engine refused it: a fault, though a mesh's word is on it
        (504, True, Outcome(504)),
    ],
)
def test_whole_answers(status: int, is_refusal: bool, outcome: Outcome) -> None:
    assert classify(Ending.WHOLE, status, is_refusal=is_refusal) == outcome


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [
        (Ending.CONNECT_FAILED, Outcome(503, local=True)),  # 1
        (Ending.RESET, Outcome(503, local=True)),
        (Ending.TIMED_OUT, Outcome(504, local=True)),
        (Ending.EMPTY, Outcome(500)),  # 2
        (Ending.BROKEN, Outcome(500)),
        (Ending.STALLED, Outcome(500)),
        (Ending.CLIENT_GONE, NOTHING),  # 5
    ],
)
@pytest.mark.parametrize("status", [0, 200])
def test_other_endings_count_whatever_the_head_said(ending: Ending, outcome: Outcome, status: int) -> None:
    assert classify(ending, status) == outcome


@pytest.mark.parametrize(
    ("estimate", "retry_after", "sample"),
    [
        (0.03, 0.0, 5.0),
        (0.03, 12.0, 12.0),
        (0.03, 2.0, 5.0),
        (8.0, 6.0, 8.0),  # a failure never makes it look faster
        (0.03, 86_400.0, 300.0),
        (400.0, 86_400.0, 400.0),
        (0.03, -5.0, 5.0),
    ],
)
def test_a_failure_is_a_slow_sample(estimate: float, retry_after: float, sample: float) -> None:
    assert penalty_s(estimate, retry_after) == sample
