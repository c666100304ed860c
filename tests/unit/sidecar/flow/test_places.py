"""Everybody has the same limit, nobody takes another's place, and who holds nothing is forgotten."""

import pytest

from sidecar.flow.places import Places


def test_each_has_the_limit_for_itself() -> None:
    places = Places(2)
    assert [places.take(who) for who in "aabaab"] == [True, True, True, False, False, True]


def test_what_is_given_back_can_be_taken_again() -> None:
    places = Places(1)
    assert [places.take("a"), places.take("a")] == [True, False]
    places.give_back("a")
    assert [places.take("a"), places.take("a")] == [True, False]


def test_who_holds_nothing_is_forgotten() -> None:
    places = Places(3)
    for i in range(1000):
        places.take(str(i))
        places.take("stays")
        places.give_back(str(i))
    assert len(places) == 1
    for _ in range(3):
        places.give_back("stays")
    assert len(places) == 0


def test_nothing_can_be_given_back_that_was_not_taken() -> None:
    with pytest.raises(KeyError):
        Places(1).give_back("a")


def test_without_a_limit_it_counts_so_that_there_may_be_one_later() -> None:
    places = Places()
    assert all(places.take("a") for _ in range(5))
    places.limit = 3
    assert not places.take("a")
    for _ in range(3):
        places.give_back("a")
    assert places.take("a")
