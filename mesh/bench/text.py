"""Prompts of a given length, in words that are one token each.

Common words of three letters with a space: one token in most vocabularies, and four characters, which is a
token of the fake engine. Each prompt begins with its number, so that no prefix cache knows it.
"""

from random import Random
from typing import Final

TOKEN_CHARS: Final = 4
_WORDS: Final = """the and for are but not you all any can her was one our out day get has him his how man new
now old see two way who boy did its let put say she too use act add age ago air arm art ask bad bag big box"""
_PAGE: Final = "".join(f"{word} " for word in Random(0).choices(_WORDS.split(), k=8192))


def prompt(number: int, tokens: int) -> str:
    """A text of so many tokens that no other number has, unless it is too short to hold a number."""
    size = tokens * TOKEN_CHARS
    text = f"{number:07} "
    text += _PAGE * ((size - len(text)) // len(_PAGE) + 1)
    return text[: size - 1] + "."
