"""When a run's figures are doubted. Runs themselves: integration."""

import pytest

from mesh.bench.runs import doubts
from mesh.bench.usage import MOST_LAG_MS, Usage


def test_a_run_on_time_with_cores_to_spare_is_believed() -> None:
    usage = Usage({"pod-0": 0.5, "generator": 0.3}, lag_p99_ms=MOST_LAG_MS)
    assert doubts(usage, asked_late_ms=MOST_LAG_MS) == []


@pytest.mark.parametrize(
    ("usage", "asked_late_ms", "words"),
    [
        (Usage({"pod-0": 0.1}, lag_p99_ms=35), 1, "the loop 35 ms"),
        (Usage({"pod-0": 0.1}, lag_p99_ms=3), 41, "callers began 41 ms late"),
        (Usage({"pod-0": 0.1, "envoy": 0.97}), 1, "bound by CPU, of one core: envoy 97%"),
    ],
)
def test_what_is_doubted(usage: Usage, asked_late_ms: float, words: str) -> None:
    (doubt,) = doubts(usage, asked_late_ms)
    assert words in doubt
