"""Whether a stream has come to its first real token.

Engines say who speaks before there is a word, send comments to keep connections alive, and announce what
will come. None of that ends a caller's wait. What counts: text, reasoning, a tool call, a refusal, a reason
to stop, an error, and any event that is not known to be empty, for a stream of unknown kind must not be held.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

_DATA: Final = b"data:"
_DONE: Final = b"[DONE]"
_NOTHING: Final = (b":", b"event:", b"id:", b"retry:")
# Events that announce (OpenAI's Responses, Anthropic's Messages).
_EMPTY: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "message_start",
        "content_block_start",
        "ping",
    }
)


class _Choice(msgspec.Struct):
    delta: dict[str, Any] | None = None
    text: str | None = None
    finish_reason: Any = None


class _Event(msgspec.Struct):
    choices: list[_Choice] | None = None
    type: str | None = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Event).decode


def has_token(stream: bytes) -> bool:
    """Whether `stream`, its bytes from the start, holds one. Half an event says nothing."""
    for line in stream.split(b"\n")[:-1]:
        if line.startswith(_DATA):
            text = line[len(_DATA) :].strip()
            if text and text != _DONE and _is_token(text):
                return True
        elif not line.startswith(_NOTHING) and line.strip():
            return True  # no event: whatever it is, it is not announced
    return False


def is_keep_alive(piece: bytes) -> bool:
    """Whether a piece of a stream without any `data:` is a comment, not the rest of an event."""
    return piece.startswith(b":") or b"\n:" in piece


def _is_token(text: bytes) -> bool:
    try:
        event = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return True
    if event.error is not None:
        return True
    if event.choices is None:
        return event.type not in _EMPTY
    return any(map(_says_something, event.choices))


def _says_something(choice: _Choice) -> bool:
    delta, text = choice.delta, choice.text
    if text or choice.finish_reason or (delta is None and text is None):
        return True
    return delta is not None and any(value for name, value in delta.items() if name != "role")
