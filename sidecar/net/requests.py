"""The head with which a request goes on: to the engine, or to a peer.

Rebuilt from parsed parts, never copied (RFC 9110 sections 7.2 and 7.6): who the caller is said to be depends
on who said it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sidecar.http1.fields import PROXY_WORDS
from sidecar.http1.request import ABSOLUTE
from sidecar.net.answers import VIA

if TYPE_CHECKING:
    from sidecar.balance.endpoint import Endpoint
    from sidecar.exchange import Exchange
    from sidecar.net.context import Context


def request_head(x: Exchange, endpoint: Endpoint, context: Context) -> list[bytes]:
    """The pieces of the head with which `x` is sent to `endpoint`."""
    body = x.body
    request = x.request
    noted = request.noted
    target, host = request.target, noted.get(b"host", b"")
    if target[:1] != b"/":
        target, host = _origin_form(request.method, target, host)
    parts = [request.method, b" ", target, b" HTTP/1.1\r\nhost: ", host, b"\r\n", *request.passing]
    if body is not None:
        parts.append(b"content-length: %d\r\n" % len(body))
    elif request.length is None:
        parts.append(b"transfer-encoding: chunked\r\n")
    elif b"content-length" in noted:
        parts.append(b"content-length: %d\r\n" % request.length)
    via, peer = VIA[request.version], x.client.peer.encode() or b"unknown"
    if b"via" in noted:
        via = b"%b, %b" % (noted[b"via"], via)
    parts += (b"via: ", via, b"\r\nx-forwarded-for: ")
    if x.by_proxy:
        parts += _proxys_words(noted, peer, host)
    else:
        parts += (peer, b"\r\nx-forwarded-proto: http\r\nx-forwarded-host: ", host)
    parts += (b"\r\nx-request-id: ", x.request_id, b"\r\n")
    if endpoint.is_peer:
        parts.append(context.introduce(x, target))
    parts.append(b"\r\n")
    return parts


def _origin_form(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes]:
    """An absolute target's path and authority; the latter replaces Host (RFC 9112 section 3.2.2)."""
    absolute = ABSOLUTE.fullmatch(target)
    if absolute is None:  # `*`
        return target, host
    authority, path = absolute.groups()
    if not path and method == b"OPTIONS":
        return b"*", authority  # RFC 9112 section 3.2.4
    return (path if path[:1] == b"/" else b"/" + path), authority


def _proxys_words(noted: dict[bytes, bytes], peer: bytes, host: bytes) -> list[bytes]:
    """What a trusted proxy says of the caller, after `x-forwarded-for: `."""
    came_by = noted.get(b"x-forwarded-for")
    parts = [came_by, b", ", peer] if came_by else [peer]
    parts += (b"\r\nx-forwarded-proto: ", noted.get(b"x-forwarded-proto", b"http"))
    parts += (b"\r\nx-forwarded-host: ", noted.get(b"x-forwarded-host") or host)
    for name in PROXY_WORDS:
        if name in noted:
            parts += (b"\r\n", name, b": ", noted[name])
    return parts
