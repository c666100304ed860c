"""When a part that died is started again."""

from mesh.local.backoff import Backoff


def test_short_lives_double_the_wait_and_the_fifth_is_the_last() -> None:
    backoff = Backoff()
    assert [backoff.after(0.1, was_ready=False) for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, None]


def test_a_life_that_was_never_ready_is_short_however_long() -> None:
    backoff = Backoff()
    assert [backoff.after(600, was_ready=False) for _ in range(5)][-1] is None


def test_a_long_life_forgives_the_short_ones() -> None:
    backoff = Backoff()
    for _ in range(4):
        backoff.after(4.9, was_ready=True)
    assert backoff.after(5.0, was_ready=True) == 0.25
    assert [backoff.after(0.1, was_ready=True) for _ in range(5)] == [0.25, 0.5, 1.0, 2.0, None]
