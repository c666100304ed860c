"""When refused callers are told to come back, and what becomes of those who do."""

from __future__ import annotations

import pytest

from sidecar.flow.invitations import Fingerprint, Invitations, fingerprint

WHO: Fingerprint = ("tenant", 10, 7)


def calendar(part: float = 0.5) -> Invitations:
    return Invitations(2, part)


def book(
    invitations: Invitations, *, cls: int = 0, earliest: float = 0.0, latest: float = 1e9
) -> float | None:
    """100 of work for a class that gets 100 a second, at 1,000 s."""
    return invitations.book(cls, 100.0, 100.0, 1000.0, earliest, latest)


def test_bookings_follow_each_other_at_the_rate_that_is_kept_for_them() -> None:
    invitations = calendar(part=0.5)
    waits = [book(invitations) for _ in range(4)]
    assert None not in waits
    assert waits == pytest.approx([waits[0], *((waits[0] or 0.0) + 2.0 * n for n in (1, 2, 3))])


def test_each_class_has_its_own() -> None:
    invitations = calendar()
    first = book(invitations, cls=0)
    book(invitations, cls=0)
    assert book(invitations, cls=1) == first


def test_nobody_is_told_to_come_at_once() -> None:
    assert (book(calendar()) or 0.0) > 0.1


def test_it_is_not_before_there_can_be_room() -> None:
    assert book(calendar(), earliest=1010.0) == pytest.approx(10.0)


def test_who_will_not_wait_so_long_is_not_invited_and_books_nothing() -> None:
    invitations = calendar()
    assert book(invitations, earliest=1010.0, latest=1009.0) is None
    assert (book(invitations) or 9.0) < 1.0


@pytest.mark.parametrize(("rate", "part"), [(0.0, 0.5), (100.0, 0.0)])
def test_there_may_be_nothing_to_promise(rate: float, part: float) -> None:
    assert calendar(part).book(0, 100.0, rate, 0.0, 0.0, 1e9) is None


def test_what_nobody_booked_is_not_saved_up() -> None:
    invitations = calendar()
    book(invitations)
    first, second = (invitations.book(0, 100.0, 100.0, 5000.0, 0.0, 1e9) for _ in range(2))
    assert (first, second) == pytest.approx((0.25, 2.25))


@pytest.mark.parametrize(
    ("returns", "is_due"), [(1004.0, False), (1004.9, True), (1005.0, True), (1007.0, True), (1009.0, False)]
)
def test_a_window_is_around_the_time_that_was_told(returns: float, is_due: bool) -> None:
    invitations = calendar()
    invitations.remember(WHO, 1000.0, 1000.0, 5.0)
    told = invitations.returned(WHO, returns)
    assert told is not None
    assert told.came == 1000.0
    assert invitations.is_due(told, returns) == is_due


def test_every_wait_a_caller_may_be_told_is_inside_the_window() -> None:
    """Times are told up to a fifth longer, and some callers round them up to seconds."""
    for wait in (0.25, 1.0, 10.0, 60.0):
        invitations = calendar()
        invitations.remember(WHO, 0.0, 1000.0, wait)
        told = invitations.returned(WHO, 1000.0)
        assert told is not None
        assert invitations.is_due(told, 1000.0 + wait * 1.2 + 1.0)


def test_who_was_not_invited_is_known_and_never_due() -> None:
    invitations = calendar()
    invitations.remember(WHO, 990.0, 1000.0, None)
    told = invitations.returned(WHO, 1003.0)
    assert told is not None
    assert told.came == 990.0
    assert not any(invitations.is_due(told, now) for now in (0.0, 1000.0, 1003.0, 1e6))


def test_an_invitation_counts_once() -> None:
    invitations = calendar()
    invitations.remember(WHO, 0.0, 1000.0, 1.0)
    assert invitations.returned(WHO, 1001.0) is not None
    assert invitations.returned(WHO, 1001.0) is None


def test_the_last_word_counts() -> None:
    invitations = calendar()
    invitations.remember(WHO, 0.0, 1000.0, 1.0)
    invitations.remember(WHO, 0.0, 1000.0, None)
    told = invitations.returned(WHO, 1001.0)
    assert told is not None
    assert not invitations.is_due(told, 1001.0)
    assert len(invitations) == 0


def test_old_refusals_are_forgotten() -> None:
    invitations = calendar()
    invitations.remember(WHO, 0.0, 1000.0, 1.0)
    assert invitations.returned(WHO, 2000.0) is None


def test_no_more_are_remembered_than_there_is_room_for() -> None:
    invitations = calendar()
    for n in range(20_000):
        invitations.remember(("t", n, n), 0.0, 1000.0, 1.0)
    assert len(invitations) == 16_384
    assert invitations.returned(("t", 19_999, 19_999), 1001.0) is not None
    assert invitations.returned(("t", 0, 0), 1001.0) is None


def test_who_is_refused_again_is_forgotten_last() -> None:
    invitations = calendar()
    for n in (*range(16_384), 0, 20_000):
        invitations.remember(("t", n, n), 0.0, 1000.0, 1.0)
    assert invitations.returned(("t", 0, 0), 1001.0) is not None
    assert invitations.returned(("t", 1, 1), 1001.0) is None


def test_a_fingerprint_is_of_the_tenant_and_the_whole_body() -> None:
    same = fingerprint("a", b"text")
    assert fingerprint("a", bytes(bytearray(b"text"))) == same
    assert len({same, fingerprint("b", b"text"), fingerprint("a", b"tExt"), fingerprint("a", b"text ")}) == 4
