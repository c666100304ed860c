"""What a request asks of a model: the few members of the body that are read, in one decode.

A body that is not the JSON we expect is nobody's fault here: it passes untouched, and the engine
answers for it. `Asked()` then says that nothing is known.
"""

from __future__ import annotations

import json
import re
from typing import Final
from urllib.parse import unquote_to_bytes

import msgspec
from msgspec import Raw

# JSON requests to a model: their bodies are held whole, so that they can be read and sent again.
MODEL_PATHS: Final = frozenset(
    {b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1/responses"}
)
EMBEDDINGS: Final = "/v1/embeddings"  # answers without a token
# POSTs that cost no GPU time.
_FREE_PATHS: Final = frozenset({b"/tokenize", b"/detokenize"})

OWN: Final = "own"  # the class of whoever asks
HIGHEST, LOWEST = "highest", "lowest"  # classes by their place
_TIERS: Final = {"priority": HIGHEST, "flex": LOWEST, "default": OWN, "auto": OWN}
MAX_TOKENS: Final = 10_000_000  # more than any engine writes; beyond it a number is nonsense
_MAX_ANSWERS: Final = 128
# Images and sound inside of JSON: long strings of base64, whose bytes say little about their tokens.
_BASE64: Final = re.compile(rb"[A-Za-z0-9+/=]{64}")
_STRIDE: Final = 2048  # bytes from one look to the next: there is one in every such string, past its type
_MEDIA_BYTES: Final = 4000  # of text that one of them counts as: about 1,000 tokens


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
    n: object = None
    messages: Raw = Raw()
    prompt: Raw = Raw()
    input: Raw = Raw()


# Members that are read as they are.
_PLAIN: Final = (
    "model", "stream", "max_tokens", "max_completion_tokens", "max_output_tokens", "service_tier", "n"
)  # fmt: skip


class Asked(msgspec.Struct):
    """What a body asks for. `cls` is what its `service_tier` means: HIGHEST, LOWEST or OWN.

    `size` is the bytes of text in the prompt, `answers` how many are wanted, `odd` that `max_tokens` made no
    sense.
    """

    model: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    cls: str | None = None
    size: int = 0
    answers: int = 1
    odd: bool = False


_decode: Final = msgspec.json.Decoder(_Body).decode


def read(body: bytes) -> Asked:
    """Decode a request body to one of MODEL_PATHS."""
    try:
        found = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        found = _leniently(body)
    tokens = found.max_completion_tokens or found.max_tokens or found.max_output_tokens
    limit = min(tokens, MAX_TOKENS) if type(tokens) is int and tokens > 0 else None
    tier, n = found.service_tier, found.n
    return Asked(
        found.model if isinstance(found.model, str) else None,
        found.stream is True,
        limit,
        _TIERS.get(tier) if isinstance(tier, str) else None,
        _text(found.messages) + _text(found.prompt) + _text(found.input),
        min(n, _MAX_ANSWERS) if type(n) is int and n > 1 else 1,
        tokens is not None and limit != tokens,
    )


def _leniently(body: bytes) -> _Body:
    """What engines read although it is no JSON (NaN, other encodings) must not slip past the rules."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        return _Body(prompt=Raw(body))
    plain = {name: given[name] for name in _PLAIN if name in given}
    return _Body(**plain, prompt=Raw(body))


def _text(raw: Raw) -> int:
    """Bytes of JSON, media counted for what it costs."""
    size = len(raw)
    if size < _MEDIA_BYTES:
        return size
    text, at = bytes(raw), 0
    while at < len(text):
        if _BASE64.match(text, at) is None:
            at += _STRIDE
            continue
        start, end = text.rfind(b'"', 0, at) + 1, text.find(b'"', at)
        if end < 0:
            break
        is_text = text.find(b" ", start, end) >= 0 or text.find(b"\\", start, end) >= 0
        if end - start > _MEDIA_BYTES and not is_text:
            size += _MEDIA_BYTES - (end - start)
        at = end + 1
    return size


class _Prioritised(msgspec.Struct):
    priority: Raw = Raw()


_priority: Final = msgspec.json.Decoder(_Prioritised).decode


def with_priority(body: bytes, priority: int) -> bytes:
    """The same request with `priority` (vLLM: lower runs first) in place of the caller's own."""
    try:
        given = _priority(body).priority
        if not given:
            at = body.index(b"{") + 1
            comma = b"" if body[at:].lstrip()[:1] == b"}" else b","
            return b'%b"priority":%d%b%b' % (body[:at], priority, comma, body[at:])
        members = msgspec.json.decode(body, type=dict[str, Raw])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError):
        return _priority_leniently(body, priority)
    members["priority"] = Raw(b"%d" % priority)
    return msgspec.json.encode(members)


def _priority_leniently(body: bytes, priority: int) -> bytes:
    try:
        given = json.loads(body)
        if isinstance(given, dict):
            return json.dumps(given | {"priority": priority}).encode()
    except (ValueError, RecursionError):
        pass
    return body
