"""What sidecars tell each other of refused callers, and how it is written."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.flow.invitations import Fingerprint, Invitations, Refused
from sidecar.flow.news import News, decode, encode

WHO: Fingerprint = ("tenant", 10, 7)
HERE, THERE = 1000.0, 5.0  # what two clocks show at the same time


def pair() -> tuple[Invitations, Invitations]:
    """Two sidecars; the first tells."""
    here, there = Invitations(1, 0.5), Invitations(1, 0.5)
    here.news = News()
    return here, there


def tell(here: Invitations, there: Invitations, *, after: float = 0.0) -> None:
    assert here.news is not None
    message = encode("pod-0", here.news.take(), HERE + after)
    pod, news = decode(message, THERE + after)
    assert pod == "pod-0"
    there.hear(news, THERE + after)


def test_an_invitation_holds_at_a_peer_in_its_own_time() -> None:
    here, there = pair()
    here.remember(WHO, HERE - 2.0, HERE, 3.0)
    tell(here, there, after=0.05)
    told = there.returned(WHO, THERE + 3.1)
    assert told is not None
    assert told.came == pytest.approx(THERE - 2.0, abs=0.001)
    assert there.is_due(told, THERE + 3.1)
    assert not there.is_due(told, THERE + 2.0)
    assert not there.is_due(told, THERE + 6.0)


def test_who_was_told_not_to_come_back_is_known_and_never_due() -> None:
    here, there = pair()
    here.remember(WHO, HERE, HERE, None)
    tell(here, there)
    told = there.returned(WHO, THERE + 3.0)
    assert told is not None
    assert not any(there.is_due(told, THERE + after) for after in (0.0, 3.0, 60.0))


def test_who_has_come_back_to_one_is_due_nowhere() -> None:
    here, there = pair()
    here.remember(WHO, HERE, HERE, 1.0)
    tell(here, there)
    assert here.returned(WHO, HERE + 1.0) is not None
    tell(here, there, after=1.0)
    assert len(there) == 0


def test_what_is_heard_is_not_told_again() -> None:
    here, there = pair()
    there.news = News()
    here.remember(WHO, HERE, HERE, 1.0)
    tell(here, there)
    assert len(there.news) == 0


def test_old_news_are_no_news() -> None:
    here, there = pair()
    here.remember(WHO, HERE, HERE, 1.0)
    tell(here, there, after=100.0)
    assert len(there) == 0


def test_who_is_not_known_is_no_news() -> None:
    here, _ = pair()
    assert here.returned(WHO, HERE) is None
    here.remember(WHO, HERE, HERE, 1.0)
    assert here.news is not None
    here.news.take()
    assert here.returned(WHO, HERE + 100.0) is None
    assert len(here.news) == 0


def test_the_last_word_counts() -> None:
    here, there = pair()
    here.remember(WHO, HERE, HERE, 1.0)
    here.returned(WHO, HERE)
    here.remember(WHO, HERE, HERE, None)
    assert here.news is not None
    assert len(here.news) == 1
    tell(here, there)
    told = there.returned(WHO, THERE)
    assert told is not None
    assert told.opens == 0.0


def test_peers_cannot_make_it_remember_without_bound() -> None:
    _, there = pair()
    there.hear(((("t", n, n), Refused(1.0, 2.0, 0.0)) for n in range(20_000)), 1.0)
    assert len(there) == 16_384


def test_the_oldest_of_too_many_are_dropped_and_counted() -> None:
    news = News()
    for n in range(4100):
        news.add(("t", n, n), None)
    assert (len(news), news.dropped) == (4096, 4)
    assert news.take()[0] == (("t", 4, 4), None)


def test_what_is_said_again_counts_as_new() -> None:
    news = News()
    for n in (1, 2, 1):
        news.add(("t", n, n), None)
    assert [who[1] for who, _ in news.take()] == [2, 1]


def test_a_message_holds_a_part_of_many() -> None:
    news = News()
    for n in range(600):
        news.add(("t", n, n), None)
    taken = []
    while batch := news.take():
        assert len(batch) <= 256
        taken += [who[1] for who, _ in batch]
    assert taken == list(range(600))


def test_a_message_is_small_and_says_nothing_else() -> None:
    message = encode("pod-0", [(("tenant", 10, 7), Refused(1003.0, 1005.0, 998.0))], HERE)
    assert msgspec.msgpack.decode(message) == ["pod-0", [["tenant", 10, 7, 2000, 3000, 5000]]]
    assert len(message) < 32


def test_spans_are_bounded() -> None:
    message = encode("p", [(WHO, Refused(1e12, 1e12, -1e12))], HERE)
    _, news = decode(message, HERE)
    assert [told for _, told in news] == [Refused(HERE + 86400, HERE + 86400, HERE - 86400)]


ENTRY = ["tenant", 10, 7, 2000, 3000, 5000]


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\xff",
        b"\xc1",
        b"hello",
        b"\x91" * 100_000,
        msgspec.msgpack.encode(["p"]),
        msgspec.msgpack.encode([1, []]),
        msgspec.msgpack.encode(["p" * 129, []]),
        msgspec.msgpack.encode({"pod": "p", "entries": []}),
        msgspec.msgpack.encode(["p", [ENTRY[:5]]]),
        msgspec.msgpack.encode(["p", [ENTRY] * 257]),
        *(
            msgspec.msgpack.encode(["p", [*ENTRY[:at], wrong, *ENTRY[at + 1 :]]])
            for at, wrong in (
                (0, 1),
                (0, "t" * 129),
                (1, -1),
                (2, 2**32),
                (3, 1e3),
                (4, 86_400_001),
                (5, "soon"),
                (5, 2**63),
            )
        ),
        msgspec.msgpack.encode(["p", []]) + b"\x00",
    ],
)
def test_what_is_no_message_is_refused(message: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(message, HERE)


def test_later_versions_may_say_more() -> None:
    _, news = decode(msgspec.msgpack.encode(["p", [[*ENTRY, "more"]], "more"]), HERE)
    assert [who for who, _ in news] == [WHO]
