"""What a request asks of a model: the few members of the body that are read, in one decode.

A body that is not the JSON we expect is nobody's fault here: it passes untouched, and the engine
answers for it. `Asked()` then says that nothing is known.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec

# JSON requests to a model: their bodies are held whole, so that they can be read and sent again.
MODEL_PATHS: Final = frozenset(
    {b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses"}
)
# POSTs that cost no GPU time.
_FREE_PATHS: Final = frozenset({b"/tokenize", b"/detokenize"})

OWN: Final = "own"  # the class of whoever asks
_TIERS: Final = {"priority": "premium", "flex": "batch", "default": OWN, "auto": OWN}
MAX_TOKENS: Final = 10_000_000  # more than any engine writes; beyond it a number is nonsense


class Route:
    """What a request target says by itself."""

    __slots__ = ("is_buffered", "is_openai", "is_work", "path")

    def __init__(self, method: bytes, target: bytes) -> None:
        path = _path(target)
        self.path = path.decode("utf-8", "replace")
        self.is_buffered = method == b"POST" and path in MODEL_PATHS
        self.is_work = method == b"POST" and path not in _FREE_PATHS
        self.is_openai = path[:4] == b"/v1/"  # refusals are shaped as OpenAI's clients expect


def _path(target: bytes) -> bytes:
    """The path as engines' frameworks see it, so that no spelling of it slips past a rule.

    Percent-encoding is undone, repeated and trailing slashes go, `.` and `..` are resolved.
    """
    if target[:1] != b"/" and b"://" in target:  # absolute-form
        target = b"/" + target.partition(b"://")[2].partition(b"/")[2]
    path = target.partition(b"?")[0]
    if b"%" in path:
        path = unquote_to_bytes(path)
    if b"//" not in path and b"/." not in path and (len(path) == 1 or path[-1:] != b"/"):
        return path
    steps: list[bytes] = []
    for step in path.split(b"/"):
        if step == b"..":
            del steps[-1:]
        elif step not in (b"", b"."):
            steps.append(step)
    return b"/" + b"/".join(steps)


class _Body(msgspec.Struct):
    """Members are of any type: a wrong one is for the engine to complain about."""

    model: object = None
    stream: object = None
    max_tokens: object = None
    max_completion_tokens: object = None
    max_output_tokens: object = None
    service_tier: object = None


class Asked(msgspec.Struct):
    """What a body asks for. `cls` is the class that its `service_tier` names, or OWN."""

    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    cls: str | None = None


_decode: Final = msgspec.json.Decoder(_Body).decode


def read(body: bytes) -> Asked:
    """Decode a request body to one of MODEL_PATHS."""
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Asked()
    tokens = found.max_completion_tokens or found.max_tokens or found.max_output_tokens
    tier = found.service_tier
    return Asked(
        found.model if isinstance(found.model, str) else None,
        found.stream is True,
        min(tokens, MAX_TOKENS) if type(tokens) is int and tokens > 0 else None,
        _TIERS.get(tier) if isinstance(tier, str) else None,
    )
