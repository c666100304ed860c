"""What an engine says an answer took: the `usage` at its end, read from the last bytes that came.

A body is not decoded for that: the member is searched from the end, where engines put it, in a JSON answer
as in the last event of a stream. What cannot be read says nothing.
"""

from __future__ import annotations

from typing import Final

import msgspec

_MOST: Final = 4096  # bytes from `"usage"` to its end


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None
    # The same in /v1/responses.
    input_tokens: int | None = None
    output_tokens: int = 0
    input_tokens_details: _Details | None = None


class Usage(msgspec.Struct, frozen=True):
    """Tokens."""

    prompt: int
    cached: int
    answer: int


_decode: Final = msgspec.json.Decoder(_Usage).decode


def read_usage(tail: bytes) -> Usage | None:
    """The usage in the last piece of an answer; None: there is none that can be read."""
    at = tail.rfind(b'"usage"')
    if at < 0:
        return None
    start = tail.find(b"{", at, at + 16)
    if start < 0:
        return None
    end = _end(tail, start)
    try:
        found = _decode(tail[start:end])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    prompt, answer, details = found.prompt_tokens, found.completion_tokens, found.prompt_tokens_details
    if prompt is None:
        prompt, answer, details = found.input_tokens, found.output_tokens, found.input_tokens_details
    cached = (details.cached_tokens or 0) if details is not None else 0
    if prompt is None or min(prompt, answer, cached) < 0:
        return None
    return Usage(prompt, min(cached, prompt), answer)


def _end(text: bytes, start: int) -> int:
    """Where the object that starts at `start` ends. Nothing inside of it is text with braces."""
    depth = 0
    for at in range(start, min(len(text), start + _MOST)):
        byte = text[at]
        if byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if not depth:
                return at + 1
    return len(text)
