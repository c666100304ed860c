"""Text that arrives in pieces: stop sequences and detokenisation. Pure.

Both hold back what the next piece could still change: a suffix that may be the beginning of a stop
sequence, or the first bytes of a character whose last byte has not come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StopMatcher:
    """Cuts a text before the first stop sequence in it, wherever the pieces are split."""

    __slots__ = ("_held", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.matched = False

    def feed(self, piece: str) -> str:
        """What can be shown after this piece. Once `matched`, the answer is over."""
        text = self._held + piece
        cut = min((at for stop in self._stops if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            self.matched, self._held = True, ""
            return text[:cut]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        shown = len(text) - keep
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """The answer ended without a stop sequence: what was held back is text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` that a `stop` could begin with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0


class Detokenizer:
    """Turns token ids into text, as they come.

    A token's text depends on its neighbours, so the tokens since the last piece are decoded together with
    the piece before them, and what that piece alone decodes to is taken away (as vLLM and TGI do). A text
    that ends in U+FFFD is an unfinished character: it waits for the next token.
    """

    __slots__ = ("_begin", "_decode", "_shown", "_tokens")

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._begin = 0  # the piece before the tokens not shown yet: _tokens[_begin:_shown]
        self._shown = 0

    def feed(self, tokens: Sequence[int]) -> str:
        self._tokens.extend(tokens)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(REPLACEMENT):
            return ""
        self._begin, self._shown = self._shown, len(self._tokens)
        # Older tokens never matter again; dropping them bounds the memory and the cost of a piece.
        del self._tokens[: self._begin]
        self._begin, self._shown = 0, self._shown - self._begin
        return now[len(before) :]

    def flush(self) -> str:
        """No token follows: an unfinished character is shown as U+FFFD."""
        before, now = self._texts()
        self._begin = self._shown = len(self._tokens)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        tokens, decode = self._tokens, self._decode
        return decode(tokens[self._begin : self._shown]), decode(tokens[self._begin :])
