"""When an engine hangs, and how it is found to be well again."""

import pytest

from sidecar.balance.progress import Progress

NOW = 1000.0
LEAST = 10.0
FIRST = 300.0


def progress(*, moved: bool = True) -> Progress:
    """Of an engine that works, and has moved a moment ago."""
    it = Progress(LEAST, FIRST, NOW)
    if moved:
        assert not look(it, 0.0, moved=True)
    return it


def look(
    it: Progress,
    after: float,
    *,
    busy: bool = True,
    moved: bool = False,
    gap_s: float = 0.0,
    prompts_s: float = 0.0,
) -> bool:
    return it.tick(NOW + after, busy=busy, moved=moved, gap_s=gap_s, prompts_s=prompts_s)


def hung() -> Progress:
    it = progress()
    assert look(it, LEAST + 0.1)
    return it


@pytest.mark.parametrize(
    ("gap_s", "prompts_s", "allowed"),
    [
        (0.0, 0.0, LEAST),
        (0.3, 0.0, LEAST),  # 10 x 3 x 0.3 = 9
        (0.5, 0.0, 15.0),
        (0.0, 2.0, LEAST),
        (0.0, 3.5, 14.0),
        (0.5, 3.5, 15.0),
        (0.4, 3.5, 14.0),
    ],
)
def test_so_long_nothing_may_be_seen(gap_s: float, prompts_s: float, allowed: float) -> None:
    it = progress(moved=False)
    look(it, 0.0, moved=True, prompts_s=prompts_s, gap_s=gap_s)
    assert it.allowed_s == pytest.approx(allowed)
    assert not look(it, allowed - 0.01)
    assert not it.hung
    assert look(it, allowed + 0.01)
    assert it.hung
    assert not look(it, allowed + 5), "said once"


def test_progress_begins_the_wait_anew() -> None:
    it = progress()
    for after in (9.0, 18.0, 27.0):
        assert not look(it, after, moved=True)
    assert not look(it, 36.9)
    assert look(it, 37.1)


def test_an_engine_that_has_nothing_to_do_does_not_hang() -> None:
    it = progress()
    assert not look(it, 1000.0, busy=False)
    assert not look(it, 1009.9), "its time begins with its work"
    assert look(it, 1010.1)


def test_what_it_is_given_while_it_stands_is_no_excuse() -> None:
    it = progress()
    look(it, 0.9, prompts_s=3.0)  # within a second
    look(it, 1.1, prompts_s=600.0)
    assert it.allowed_s == 12.0
    look(it, 0.95, prompts_s=1.0)
    assert it.allowed_s == 12.0, "what is computed meanwhile was owed all the same"


def test_that_it_stands_is_no_excuse() -> None:
    """Whoever measures the time between tokens sees it grow."""
    it = progress()
    for after in range(1, 11):
        assert not look(it, after, gap_s=0.1 * after)
    assert look(it, 10.1, gap_s=1.0)


def test_the_prompts_of_old_work_are_no_excuse_for_new() -> None:
    it = progress()
    look(it, 0.5, prompts_s=600.0)
    look(it, 1.0, busy=False)
    assert it.allowed_s == LEAST
    look(it, 1.5, prompts_s=600.0)
    look(it, 2.0, moved=True, prompts_s=0.0)
    assert it.allowed_s == LEAST


def test_its_first_token_ever_may_need_compiling() -> None:
    it = progress(moved=False)
    assert not look(it, FIRST - 1)
    assert look(it, FIRST + 1)
    assert look(it, FIRST + 2, moved=True)
    assert it.allowed_s == LEAST


def test_the_first_use_is_not_shorter_than_any_other() -> None:
    assert Progress(LEAST, 1.0, NOW).allowed_s == LEAST


def test_it_is_well_with_the_first_progress() -> None:
    it = hung()
    assert look(it, 60.0, moved=True)
    assert not it.hung
    assert not look(it, 60.0 + LEAST - 0.1)


def test_it_stays_hung_when_what_it_had_was_taken_away() -> None:
    it = hung()
    assert not look(it, 20.0, busy=False)
    assert it.hung


def test_now_and_then_it_is_given_one_request() -> None:
    it = hung()
    tries = [after for after in range(10, 400) if it.may_try(NOW + after + 0.2)]
    # After 10 s, then twice as long each time, up to a minute.
    assert tries == [20, 40, 80, 140, 200, 260, 320, 380]


def test_only_what_hangs_is_tried() -> None:
    it = progress()
    assert not it.may_try(NOW + 1000)
    it = hung()
    look(it, 30.0, moved=True)
    assert not it.may_try(NOW + 1000)


def test_trials_begin_anew_each_time_it_hangs() -> None:
    it = hung()
    assert it.may_try(NOW + 21)
    assert it.may_try(NOW + 42)
    look(it, 50.0, moved=True)
    look(it, 60.1)
    assert it.hung
    assert not it.may_try(NOW + 70.0)
    assert it.may_try(NOW + 70.2)
    assert not it.may_try(NOW + 90.1)
    assert it.may_try(NOW + 90.3)


def test_one_that_was_started_again_is_another() -> None:
    it = progress(moved=False)
    look(it, 0.0, moved=True, prompts_s=300.0)
    look(it, 1300.0)
    assert it.hung
    it.begin_anew(NOW + 1400)
    assert not it.hung
    assert it.allowed_s == FIRST, "it compiles again, and owes nothing"
    assert not look(it, 1400 + FIRST - 1)
    assert look(it, 1400 + FIRST + 1)
