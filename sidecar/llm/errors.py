"""A refusal as the body that OpenAI's clients read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from sidecar.errors import Refusal

_encode = msgspec.json.Encoder().encode


def error_object(refusal: Refusal, message: str | None = None) -> dict[str, object]:
    """`{"error": {...}}` for `refusal`; `message` replaces its own."""
    return {
        "error": {
            "message": message or refusal.message,
            "type": refusal.kind,
            "param": None,
            "code": refusal.reason,
        }
    }


def error_body(refusal: Refusal, message: str | None = None) -> bytes:
    """The whole body of a refusal."""
    return _encode(error_object(refusal, message))


def error_event(refusal: Refusal) -> bytes:
    """The last event of a stream that broke off: the broken line is ended first."""
    return b"\n\ndata: %b\n\n" % error_body(refusal)
