"""Which fields pass from one side to the other (RFC 9110 sections 7.6 and 7.8).

Heads are rebuilt from parsed fields, never copied: hop-by-hop fields and those that `Connection`
names are dropped, framing is stated anew, and what a caller must not set is removed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sidecar.http1.request import Fields

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
# Written anew on every request.
_REQUEST: Final = _HOP_BY_HOP | {
    b"content-length",
    b"expect",
    b"host",
    b"proxy-authorization",
    b"via",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"x-request-id",
}
# Words of a proxy, from a caller that is none.
_PROXY_WORDS: Final = frozenset({b"forwarded", b"x-real-ip", b"x-request-start"})
_UNTRUSTED: Final = _REQUEST | _PROXY_WORDS
# Written anew on every answer.
_RESPONSE: Final = _HOP_BY_HOP | {b"content-length", b"via", b"x-request-id"}
# Never dropped for being named in Connection: that would let a caller unframe or disarm a request.
_END_TO_END: Final = frozenset(
    {b"host", b"content-length", b"authorization", b"cache-control", b"content-type"}
)
_ORDINARY: Final = (None, b"keep-alive", b"close", b"Keep-Alive", b"Close")

INTERNAL: Final = b"x-headgate-"  # only mesh members may set these


def _named_in(connection: bytes) -> set[bytes]:
    """The fields that a `Connection` value makes hop-by-hop."""
    return {token.strip().lower() for token in connection.split(b",")} - _END_TO_END


def request_fields(fields: Fields, connection: bytes | None, *, trusted: bool) -> list[bytes]:
    """What of a request's `fields` goes on to the engine, as pieces of lines.

    `trusted`: the peer is a proxy whose word about the caller counts. A name with "_" that would be
    dropped with "-" is dropped too: many frameworks read both as one.
    """
    dropped = _REQUEST if trusted else _UNTRUSTED
    if connection not in _ORDINARY:
        dropped = dropped | _named_in(connection or b"")
    parts: list[bytes] = []
    for name, value in fields:
        if name not in dropped and name[:11] != INTERNAL:
            if b"_" in name:
                alias = name.replace(b"_", b"-")
                if alias in dropped or alias[:11] == INTERNAL:
                    continue
            parts += (name, b": ", value, b"\r\n")
    return parts


def response_fields(fields: Fields, connection: bytes | None) -> list[bytes]:
    """What of an answer's `fields` goes on to the client, as pieces of lines."""
    dropped = _RESPONSE if connection in _ORDINARY else _RESPONSE | _named_in(connection or b"")
    parts: list[bytes] = []
    for name, value in fields:
        if name not in dropped and name[:11] != INTERNAL:
            parts += (name, b": ", value, b"\r\n")
    return parts


def joined(fields: Fields, name: bytes) -> bytes:
    """All values of a list field in one, in order (RFC 9110 section 5.3)."""
    return b", ".join(value for field, value in fields if field == name)
