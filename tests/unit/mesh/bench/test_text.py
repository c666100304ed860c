"""Prompts have the length that was asked for, and no two begin alike."""

import pytest

from mesh.bench.text import TOKEN_CHARS, prompt


@pytest.mark.parametrize("tokens", [1, 2, 3, 800, 8192, 8193, 32_000])
def test_a_prompt_has_its_length(tokens: int) -> None:
    text = prompt(7, tokens)
    assert len(text) == tokens * TOKEN_CHARS
    assert text.isascii()


def test_no_two_prompts_begin_alike() -> None:
    assert len({prompt(number, 50)[:8] for number in range(500)}) == 500


def test_words_are_as_long_as_a_token() -> None:
    assert {len(word) for word in prompt(0, 2000)[:-1].split()[1:-1]} == {TOKEN_CHARS - 1}
