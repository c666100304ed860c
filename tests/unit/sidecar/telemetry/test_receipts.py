"""The ring of the last records."""

from typing import cast

from sidecar.telemetry.receipts import Receipts
from sidecar.telemetry.record import Record


def filled(capacity: int, count: int) -> Receipts:
    receipts = Receipts(capacity)
    for i in range(count):
        receipts.add(cast(Record, i))
    return receipts


def test_newest_first_and_bounded() -> None:
    assert filled(3, 5).last(10) == [4, 3, 2]
    assert filled(3, 5).last(2) == [4, 3]
    assert filled(3, 2).last(3) == [1, 0]


def test_none_asked_and_none_kept() -> None:
    assert filled(3, 5).last(0) == filled(3, 5).last(-1) == filled(0, 5).last(9) == []


def test_resizing_keeps_the_newest() -> None:
    receipts = filled(5, 5)
    receipts.resize(2)
    assert receipts.last(9) == [4, 3]
    receipts.resize(3)
    receipts.add(cast(Record, 5))
    assert receipts.last(9) == [5, 4, 3]
