"""The two heads a client can get: the engine's, rewritten, and the mesh's own."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Final

from sidecar.exchange import Reply
from sidecar.http1.encode import answer, status_line
from sidecar.http1.fields import PSEUDONYM
from sidecar.llm.errors import error_body

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.errors import ProtocolError, Refusal
    from sidecar.exchange import Exchange
    from sidecar.http1.encode import Date
    from sidecar.http1.response import ResponseHead

# By the version in which the message was received (RFC 9110 section 7.6.3).
VIA: Final = {"1.1": b"1.1 " + PSEUDONYM, "1.0": b"1.0 " + PSEUDONYM}
_VIA_LINES: Final = {version: b"via: %b\r\n" % via for version, via in VIA.items()}
_JSON: Final = b"application/json"


def engine_head(
    x: Exchange, head: ResponseHead, date: Date, load: bytes, *, chunked: bool, close: bool
) -> list[bytes]:
    """The engine's head as the client gets it: framed for this connection, with where the time went.

    `load` is the line of our load report, or nothing.
    """
    parts = [status_line(head.status), *head.passing, load]
    if chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif head.length is not None and head.status != 204:
        parts.append(b"content-length: %d\r\n" % head.length)
    noted = head.noted
    if b"x-headgate-reason" in noted and x.endpoint is not None and x.endpoint.is_peer:
        parts.append(b"x-headgate-reason: %b\r\n" % noted[b"x-headgate-reason"])  # the mesh's own words
        if b"x-headgate-elsewhere" in noted:
            parts.append(b"x-headgate-elsewhere: 1\r\n")
    if b"via" in noted:
        parts.append(b"via: %b, %b\r\n" % (noted[b"via"], VIA[head.version]))
    else:
        parts.append(_VIA_LINES[head.version])
    if b"date" not in noted:
        parts.append(date.line())  # RFC 9110 section 6.6.1
    parts.append(_about(x))
    parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
    return parts


def own_answer(
    x: Exchange, reply: Reply, status: int, date: Date, load: bytes, *, close: bool, elsewhere: bool
) -> bytes:
    """A whole refusal, with `status` in place of its usual one, or what we say where nothing is refused.

    `elsewhere`: another pod may do better.
    """
    refusal = reply.refusal
    fields = b"%b%b%b%b%b%b" % (
        b"x-headgate-reason: %b\r\n" % refusal.reason.encode() if refusal.reason else b"",
        _returning(refusal, reply.retry_after_s, elsewhere),
        reply.headers,
        date.line(),
        load,
        _about(x),
    )
    if not refusal.reason:
        body, content_type = reply.body, reply.content_type
    elif x.is_openai:
        body, content_type = error_body(refusal, reply.message), _JSON
    else:
        body, content_type = (reply.message or refusal.message).encode() + b"\n", b"text/plain; charset=utf-8"
    x.bytes_out = len(body)
    return answer(status, content_type, body, fields, close=close, head=x.request.method == b"HEAD")


def unreadable(failure: ProtocolError, clock: Clock) -> Reply:
    """The answer to bytes that are no request."""
    refusal = failure.refusal
    return Reply(
        refusal,
        retry_after_s=clock.jitter(1.0, 0.2) if refusal.inviting else None,
        message=f"{refusal.message} ({failure.detail})",
    )


def _about(x: Exchange) -> bytes:
    """Its id, and the milliseconds it spent before the first byte, by place."""
    upstream = (x.responded - x.dispatched) * 1000 if x.responded else 0.0
    return b"x-request-id: %b\r\nserver-timing: limit;dur=0, queue;dur=%.1f, upstream;dur=%.1f\r\n" % (
        x.request_id,
        x.waited * 1000,
        upstream,
    )


def _returning(refusal: Refusal, retry_after_s: float | None, elsewhere: bool) -> bytes:
    """When to come back, for callers (RFC 9110 section 10.2.3, OpenAI's SDK) and for Envoy."""
    lines = b""
    if refusal.status == 429:
        lines += b"x-envoy-ratelimited: true\r\n"
    if elsewhere:
        lines += b"x-headgate-elsewhere: 1\r\n"
    if refusal.inviting and retry_after_s is None:
        lines += b"x-should-retry: false\r\n"
    elif retry_after_s is not None:
        ms = ceil(retry_after_s * 1000)
        lines += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (ceil(ms / 1000), ms)
    return lines


def interim_head(head: ResponseHead) -> bytes:
    """A 1xx answer, passed on."""
    return b"%b%b\r\n" % (status_line(head.status), b"".join(head.passing))

