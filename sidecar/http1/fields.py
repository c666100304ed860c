"""Header fields: which are read, which pass, and which end here (RFC 9110 sections 5, 7.6 and 7.8).

Heads are rebuilt from parsed fields, never copied: hop-by-hop fields and those that `Connection` names
are dropped, framing is stated anew, and what a caller must not set is removed. Callers send the same
lines again and again, so what one line means is worked out once and remembered, as HPACK does: a line
that was seen before costs one look-up. What is looked at here by name is noted; all else just passes.

A line is one field (RFC 9112 section 5): a token, a colon, a value without controls. Everything a lax
reader would repair is refused: space before the colon, a folded line, a bare CR or LF, NUL.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from sidecar.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sidecar.errors import Refusal

Fields = list[tuple[bytes, bytes]]
# What is noted under which name, with which value, and the line that passes (b"": none does).
_Meaning = tuple[bytes | None, bytes, bytes]
# The name if it is noted, what a passing line starts with (b"": none passes), what its values must be, and
# whether they seldom come twice.
_Name = tuple[bytes | None, bytes, "Callable[[bytes], None] | None", bool]

INTERNAL: Final = b"x-headgate-"  # only mesh members may set these
PSEUDONYM: Final = b"headgate"  # in Via

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*"
LINE: Final = re.compile(TOKEN + rb":" + _TEXT)
_NAME: Final = re.compile(TOKEN)
_VALUE: Final = re.compile(_TEXT)
# What no head contains, wherever its lines end: a control, a bare LF or CR.
NEVER: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)")

_REMEMBERED: Final = 1024  # lines, of
_MAX_REMEMBERED: Final = 512  # bytes at most
# Their values seldom come twice.
_VARYING: Final = frozenset(
    {
        b"baggage",
        b"content-length",
        b"endpoint-load-metrics",
        b"idempotency-key",
        b"x-headgate-caller",
        b"x-headgate-signature",
        b"traceparent",
        b"tracestate",
        b"x-forwarded-for",
        b"x-request-id",
        b"x-request-start",
    }
)

_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"http2-settings",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Words of a proxy, from a caller that may be none: they pass only if it is trusted.
PROXY_WORDS: Final = (b"forwarded", b"x-real-ip", b"x-request-start")
# Written anew on every request.
_DROPPED_FROM_REQUESTS: Final = _HOP_BY_HOP.union(
    PROXY_WORDS,
    {
        b"content-length",
        b"expect",
        b"host",
        b"proxy-authorization",
        b"via",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    },
)
_NOTED_OF_REQUESTS: Final = _DROPPED_FROM_REQUESTS.union(
    {
        b"api-key",
        b"authorization",
        b"content-type",
        b"endpoint-load-metrics-format",
        b"grpc-timeout",
        b"max-forwards",
        b"x-api-key",
        b"x-headgate-caller",  # believed only where peers come in, and signed
        b"x-headgate-hop",
        b"x-headgate-signature",
        b"x-priority",
        b"x-request-timeout-ms",
        b"x-stainless-read-timeout",
        b"x-stainless-retry-count",
    }
)
# Written anew on every answer.
_DROPPED_FROM_ANSWERS: Final = _HOP_BY_HOP | {
    b"content-length",
    b"endpoint-load-metrics",
    b"endpoint-load-metrics-bin",
    b"endpoint-load-metrics-json",
    b"via",
    b"x-request-id",
}
_NOTED_OF_ANSWERS: Final = _DROPPED_FROM_ANSWERS | {
    b"content-encoding",
    b"content-type",
    b"date",
    b"retry-after",
    b"x-envoy-overloaded",
    b"x-headgate-elsewhere",
    b"x-headgate-reason",
}

# Fields of which a second one would be read differently by different readers.
_SINGLE: Final = frozenset(
    {
        b"api-key",
        b"authorization",
        b"content-length",
        b"content-type",
        b"expect",
        b"host",
        b"transfer-encoding",
        b"x-api-key",
    }
)
# Lists, of which several are one (RFC 9110 section 5.3); a number that comes twice is then none.
_LISTS: Final = frozenset(
    {b"connection", b"forwarded", b"max-forwards", b"upgrade", b"via", b"x-forwarded-for"}
)
# Never dropped for being named in Connection: that would let a caller unframe or disarm a request.
_END_TO_END: Final = frozenset(
    {b"host", b"content-length", b"authorization", b"cache-control", b"content-type"}
)
ORDINARY: Final = (None, b"keep-alive", b"close", b"Keep-Alive", b"Close")  # Connection, naming no field


class FieldReader:
    """Reads the fields of one direction.

    `check` has, by name, what raises ProtocolError for values that cannot be; it decides alone.
    """

    __slots__ = ("_check", "_dropped", "_known", "_names", "_noted", "_refusal")

    def __init__(
        self,
        noted: frozenset[bytes],
        dropped: frozenset[bytes],
        refusal: Refusal,
        check: Mapping[bytes, Callable[[bytes], None]],
    ) -> None:
        self._noted = noted
        self._dropped = dropped
        self._refusal = refusal
        self._check = check
        self._known: dict[bytes, _Meaning] = {}
        self._names: dict[bytes, _Name] = {}

    def read(self, lines: list[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """What is noted, by name in lower case, and the lines that pass, each with its CRLF.

        Of a repeated field the first counts, unless it is a list: then all of it. Raises ProtocolError.
        """
        known = self._known.get
        noted: dict[bytes, bytes] = {}
        passing: list[bytes] = []
        for line in lines:
            name, value, passes = known(line) or self._learn(line)
            if name is not None:
                if name in noted:
                    value = self._repeated(name, noted[name], value)
                noted[name] = value
            if passes:
                passing.append(passes)
        if noted.get(b"connection") not in ORDINARY:
            passing = _without(passing, noted[b"connection"])
        return noted, passing

    def _learn(self, line: bytes) -> _Meaning:
        written, colon, value = line.partition(b":")
        name, starts_with, check, varies = self._names.get(written) or self._learn_name(written)
        value = value.strip(b" \t")
        if check is not None and colon:
            check(value)
        elif not colon or _VALUE.fullmatch(value) is None:
            raise ProtocolError(self._refusal, "invalid header field")
        meaning = name, value, starts_with and b"%b%b\r\n" % (starts_with, value)
        if not varies and len(line) <= _MAX_REMEMBERED:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[line] = meaning
        return meaning

    def _learn_name(self, written: bytes) -> _Name:
        """A name with "_" that would be dropped with "-" is dropped too: many frameworks read both as one."""
        if _NAME.fullmatch(written) is None:
            raise ProtocolError(self._refusal, "invalid header field")
        name = written.lower()
        alias = name.replace(b"_", b"-")
        drops = alias in self._dropped or alias[: len(INTERNAL)] == INTERNAL
        meaning = (
            name if name in self._noted else None,
            b"" if drops else name + b": ",
            self._check.get(name),
            name in _VARYING,
        )
        if len(name) <= _MAX_REMEMBERED:
            if len(self._names) >= _REMEMBERED:
                self._names.clear()
            self._names[written] = meaning
        return meaning

    def _repeated(self, name: bytes, first: bytes, value: bytes) -> bytes:
        if name in _SINGLE:
            raise ProtocolError(self._refusal, f"repeated {name.decode()}")
        return b"%b, %b" % (first, value) if name in _LISTS else first


def request_fields(refusal: Refusal, check: Mapping[bytes, Callable[[bytes], None]]) -> FieldReader:
    """A reader of requests' fields; `refusal` answers invalid ones."""
    return FieldReader(_NOTED_OF_REQUESTS, _DROPPED_FROM_REQUESTS, refusal, check)


def answer_fields(refusal: Refusal, check: Mapping[bytes, Callable[[bytes], None]]) -> FieldReader:
    """A reader of answers' fields; `refusal` answers invalid ones."""
    return FieldReader(_NOTED_OF_ANSWERS, _DROPPED_FROM_ANSWERS, refusal, check)


def whole_head(partial: bytearray, seen: int) -> bytes:
    """All of `partial`, which is emptied, if a head ends in it behind the `seen` bytes; else nothing."""
    if partial.find(b"\r\n\r\n", max(seen - 3, 0)) < 0:
        return b""
    data = bytes(partial)
    partial.clear()
    return data


def pairs(lines: list[bytes]) -> Fields:
    """Valid `lines` as names in lower case and values, in order and with their repeats."""
    split = (line.partition(b":") for line in lines)
    return [(name.lower(), value.strip(b" \t")) for name, _, value in split]


def has_token(value: bytes | None, token: bytes) -> bool:
    """Whether a list such as Connection's names `token`."""
    return value is not None and any(part.strip().lower() == token for part in value.split(b","))


def _without(passing: list[bytes], connection: bytes) -> list[bytes]:
    """`passing` without the fields that a `Connection` value makes hop-by-hop."""
    named = {token.strip().lower() for token in connection.split(b",")} - _END_TO_END
    return [line for line in passing if named.isdisjoint(_spellings(line.partition(b":")[0]))]


def _spellings(name: bytes) -> tuple[bytes, bytes]:
    return name, name.replace(b"_", b"-")
