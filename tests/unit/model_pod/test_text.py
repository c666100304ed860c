"""Stop sequences and detokenisation, with pieces split at every place."""

from __future__ import annotations

import pytest

from model_pod.text import Detokenizer, StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    matcher = StopMatcher(stops)
    shown = []
    for piece in pieces:
        shown.append(matcher.feed(piece))
        if matcher.matched:
            return shown, True
    return [*shown, matcher.flush()], False


def test_text_before_the_stop_sequence_is_shown():
    assert run(["END"], ["one END two"]) == (["one "], True)


def test_a_possible_beginning_is_held_back_and_shown_when_it_was_none():
    assert run(["END"], ["one E", "N", "ough"]) == (["one ", "", "ENough", ""], False)


def test_what_is_held_back_at_the_end_is_text():
    assert run(["END"], ["the EN"]) == (["the ", "EN"], False)


def test_an_overlapping_beginning_is_found():
    assert run(["aab"], ["aa", "ab"]) == (["", "a"], True)


def test_the_first_of_several_wins():
    assert run(["later", "x"], ["a x b later"]) == (["a "], True)


@pytest.mark.parametrize("split", range(len("some STOP text") + 1))
def test_any_split_shows_the_same(split):
    text = "some STOP text"
    shown, matched = run(["STOP", "TOPS"], [text[:split], text[split:]])
    assert ("".join(shown), matched) == ("some ", True)


def decode(tokens: list[int]) -> str:
    """A byte-level vocabulary: a token is a byte."""
    return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize("text", ["plain", "grün", "鍵 and 門", "🚪🔑 gates"])
def test_characters_are_never_broken(text):
    detokenizer = Detokenizer(decode)
    pieces = [detokenizer.feed([byte]) for byte in text.encode()]
    assert "".join(pieces) + detokenizer.flush() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
    assert pieces[-1] != ""


def test_an_unfinished_character_is_shown_at_the_end_only():
    detokenizer = Detokenizer(decode)
    assert [detokenizer.feed([byte]) for byte in "a🚪".encode()[:-1]] == ["a", "", "", ""]
    assert detokenizer.flush() == "\N{REPLACEMENT CHARACTER}"
    assert detokenizer.flush() == ""


def test_a_token_is_decoded_beside_its_neighbour():
    # As SentencePiece does, the first token of a text loses its leading space.
    words = [" a", " river", " gate"]
    detokenizer = Detokenizer(lambda tokens: "".join(words[token] for token in tokens).removeprefix(" "))
    assert [detokenizer.feed([token]) for token in range(3)] == ["a", " river", " gate"]


def test_several_tokens_at_once():
    detokenizer = Detokenizer(decode)
    assert detokenizer.feed(list("grün".encode()[:3])) == ""
    assert detokenizer.feed(list("grün".encode()[3:])) == "grün"


def test_old_tokens_are_forgotten():
    seen = []
    detokenizer = Detokenizer(lambda tokens: seen.append(len(tokens)) or decode(tokens))
    for byte in b"x" * 1000:
        detokenizer.feed([byte])
    assert max(seen) == 2
