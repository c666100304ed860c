"""The two heads a client can get: the engine's, rewritten, and the mesh's own."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from sidecar.http1.encode import answer, status_line
from sidecar.http1.headers import joined, response_fields
from sidecar.llm.errors import error_body

if TYPE_CHECKING:
    from sidecar.errors import Refusal
    from sidecar.exchange import Exchange, Reply
    from sidecar.http1.response import ResponseHead

VIA: Final = b"1.1 headgate"
_JSON: Final = b"application/json"


def engine_head(x: Exchange, head: ResponseHead, *, chunked: bool, close: bool) -> bytes:
    """The engine's head as the client gets it: framed for this connection, with where the time went."""
    first = head.first
    parts = response_fields(head.fields, first.get(b"connection"))
    if chunked:
        framing = b"transfer-encoding: chunked\r\n"
    elif head.length is not None and head.status != 204:
        framing = b"content-length: %d\r\n" % head.length
    else:
        framing = b""
    via = first.get(b"via")
    return b"%b%b%bvia: %b\r\n%b%b\r\n" % (
        status_line(head.status),
        b"".join(parts),
        framing,
        VIA if via is None else joined(head.fields, b"via") + b", " + VIA,
        _about(x),
        b"connection: close\r\n" if close else b"",
    )


def own_answer(x: Exchange, reply: Reply, status: int, *, close: bool) -> bytes:
    """A whole refusal, with `status` in place of its usual one."""
    refusal = reply.refusal
    fields = b"x-headgate-reason: %b\r\n%b%b%b" % (
        refusal.reason.encode(),
        _returning(refusal, reply.retry_after_s),
        reply.headers,
        _about(x),
    )
    if x.is_openai:
        body, content_type = error_body(refusal, reply.message), _JSON
    else:
        body, content_type = (reply.message or refusal.message).encode() + b"\n", b"text/plain; charset=utf-8"
    x.bytes_out = len(body)
    return answer(status, content_type, body, fields, close=close, head=x.request.method == b"HEAD")


def _about(x: Exchange) -> bytes:
    """Its id, and the milliseconds it spent before the first byte, by place."""
    upstream = (x.responded - x.dispatched) * 1000 if x.responded else 0.0
    return b"x-request-id: %b\r\nserver-timing: limit;dur=0, queue;dur=%.1f, upstream;dur=%.1f\r\n" % (
        x.request_id,
        x.waited * 1000,
        upstream,
    )


def _returning(refusal: Refusal, retry_after_s: float | None) -> bytes:
    """When to come back, for callers (RFC 9110 section 10.2.3, OpenAI's SDK) and for Envoy."""
    lines = b""
    if refusal.status == 429:
        lines += b"x-envoy-ratelimited: true\r\n"
    if refusal.elsewhere:
        lines += b"x-headgate-elsewhere: 1\r\n"
    if refusal.inviting and retry_after_s is None:
        lines += b"x-should-retry: false\r\n"
    elif retry_after_s is not None:
        ms = ceil(retry_after_s * 1000)
        lines += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (ceil(ms / 1000), ms)
    return lines


def interim_head(head: ResponseHead) -> bytes:
    """A 1xx answer, passed on."""
    fields = b"".join(response_fields(head.fields, head.first.get(b"connection")))
    return b"%b%b\r\n" % (status_line(head.status), fields)

