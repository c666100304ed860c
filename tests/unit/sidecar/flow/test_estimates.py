"""What is expected before anything is known, what answers teach, and what survives a restart."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.flow.estimates import Estimates


def taught(*answers: int, tenant: str = "a", model: str = "m", **known: Any) -> Estimates:
    estimates = Estimates()
    for answer in answers:
        estimates.learn(tenant, model, answer, size=4000, **known)
    return estimates


def answer(estimates: Estimates, tenant: str = "a", model: str = "m", most: int | None = None) -> float:
    return estimates.expect(tenant, model, 4000, most)[2]


def test_before_anything_is_known() -> None:
    prompt, fresh, expected = Estimates().expect("a", "m", 4000, None)
    assert prompt == fresh == pytest.approx(1000.0, rel=0.01)
    assert expected == 300.0


def test_an_empty_prompt_costs_something() -> None:
    assert Estimates().expect("a", "m", 0, None)[0] > 0.0


def test_no_more_is_expected_than_the_caller_takes() -> None:
    assert answer(Estimates(), most=10) == 10.0
    assert answer(Estimates(), most=10_000) == 300.0


def test_it_learns_how_long_answers_are() -> None:
    assert answer(taught(*[50] * 200)) == pytest.approx(50.0, rel=0.1)
    assert answer(taught(*[50] * 200, *[900] * 200)) == pytest.approx(900.0, rel=0.1)


def test_first_answers_teach_more_than_later_ones_and_none_is_believed_alone() -> None:
    first = answer(taught(1300)) - 300.0
    later = answer(taught(*[300] * 100, 1300)) - 300.0
    assert 500.0 > first > 5 * later > 0.0


def test_who_is_new_is_taken_to_be_as_others_are_with_that_model() -> None:
    estimates = taught(*[50] * 200)
    assert answer(estimates, tenant="new") == pytest.approx(50.0, rel=0.1)
    assert answer(estimates, model="other") == 300.0


def test_each_tenant_is_known_by_its_own_answers() -> None:
    estimates = taught(*[50] * 200)
    for _ in range(200):
        estimates.learn("b", "m", 900, size=4000)
    assert answer(estimates, "a") == pytest.approx(50.0, rel=0.1)
    assert answer(estimates, "b") == pytest.approx(900.0, rel=0.1)


def test_it_learns_how_long_a_token_is() -> None:
    estimates = taught(*[1] * 200, prompt=2000)
    assert estimates.expect("a", "m", 4000, None)[0] == pytest.approx(2000.0, rel=0.1)
    assert estimates.expect("new", "m", 4000, None)[0] == pytest.approx(2000.0, rel=0.1)


@pytest.mark.parametrize("prompt", [1, 10**9])
def test_a_token_has_a_sane_length_whatever_an_engine_says(prompt: int) -> None:
    estimates = taught(*[1] * 500, prompt=prompt)
    assert 250.0 <= estimates.expect("a", "m", 4000, None)[0] <= 8001.0


def test_it_learns_how_much_of_prompts_is_cached() -> None:
    prompt, fresh, _ = taught(*[1] * 200, prompt=1000, cached=750).expect("a", "m", 4000, None)
    assert fresh == pytest.approx(prompt / 4, rel=0.1)
    prompt, fresh, _ = taught(*[1] * 200, prompt=1000, cached=5000).expect("a", "m", 4000, None)
    assert 0.0 <= fresh < 0.1 * prompt


def test_what_an_engine_does_not_say_teaches_nothing() -> None:
    prompt, fresh, _ = taught(*[1] * 200).expect("a", "m", 4000, None)
    assert prompt == fresh == pytest.approx(1000.0, rel=0.01)


def test_what_is_known_is_bounded_and_what_is_known_of_a_model_stays() -> None:
    estimates = taught(*[50] * 50)
    for n in range(10_000):
        estimates.learn(f"t{n}", "m", 50, size=4000)
        assert answer(estimates, "new") < 100.0
    assert len(estimates) == 4096


def test_what_was_learnt_can_be_taken_up_again() -> None:
    estimates = taught(*[50] * 200, prompt=2000, cached=500)
    again = Estimates()
    again.load(estimates.dump())
    expected = estimates.expect("a", "m", 4000, None)
    assert again.expect("a", "m", 4000, None) == pytest.approx(expected, rel=0.01)
    again.learn("a", "m", 1050, size=4000)
    assert answer(again) < 100.0, "as sure as before"


@pytest.mark.parametrize(
    "wrong",
    [{"answer": "many"}, {"answer": None}, {"cached": []}, {"n": "x"}, {"tenant": ...}],
    ids=lambda change: str(*change),
)
def test_what_it_did_not_write_is_refused_whole(wrong: dict[str, Any]) -> None:
    rows = [dict(row) for row in taught(50, 50).dump()]
    for name, value in wrong.items():
        if value is ...:
            del rows[-1][name]
        else:
            rows[-1][name] = value
    estimates = taught(900)
    before = answer(estimates)
    with pytest.raises((KeyError, TypeError, ValueError)):
        estimates.load(rows)
    assert answer(estimates) == before


def test_absurd_numbers_are_bounded() -> None:
    rows = taught(50).dump()
    for row in rows:
        row.update(answer=-5.0, cached=7.0, bytes=0.0)
    estimates = Estimates()
    estimates.load(rows)
    prompt, fresh, expected = estimates.expect("a", "m", 4000, None)
    assert prompt == pytest.approx(8001.0)
    assert (fresh, expected) == (1.0, 0.0)
