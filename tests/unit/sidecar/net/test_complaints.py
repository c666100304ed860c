"""What is wrong with an engine is said, and not said a thousand times."""

import pytest

from sidecar.net.complaints import Complaints
from tests.harness.clock import FakeClock


def test_each_kind_is_said_once_in_a_while_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    complaints = Complaints(clock.now)
    for _ in range(1000):
        complaints.warn("10.0.0.1:8000", "it hung up")
    complaints.warn("10.0.0.2:8000", "it hung up")
    complaints.warn("10.0.0.1:8000", "it talks nonsense")
    clock.advance(10)
    complaints.warn("10.0.0.1:8000", "it hung up")
    assert [record.getMessage() for record in caplog.records] == [
        "10.0.0.1:8000: it hung up",
        "10.0.0.2:8000: it hung up",
        "10.0.0.1:8000: it talks nonsense",
        "10.0.0.1:8000: it hung up (and 999 times more before)",
    ]


def test_what_is_remembered_is_bounded() -> None:
    complaints = Complaints(FakeClock().now)
    for i in range(1000):
        complaints.warn("10.0.0.1:8000", f"reason {i}")
    assert len(complaints._kinds) <= 256
