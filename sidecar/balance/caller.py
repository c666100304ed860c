"""What one sidecar tells the next about whose request it hands on, and how that one knows it to be true.

    x-headgate-hop        how many sidecars it has left: 1, for there is one hop at most
    x-headgate-caller     who asks, as `name=value` pairs
    x-headgate-signature  HMAC-SHA256, in hex, over both and what they belong to: method, target, request id,
                          length of the body

Elapsed times travel, not instants: clocks of pods differ. Members share the key; while it is exchanged there
are two, of which the first signs and both are believed. The signature says who wrote the words, not that
nobody listened: who can read the wire could read the caller's own key there as well.
"""

from __future__ import annotations

import hmac
import re
from typing import Final, NamedTuple

HOP: Final = b"x-headgate-hop"
CALLER: Final = b"x-headgate-caller"
SIGNATURE: Final = b"x-headgate-signature"

_SAFE: Final = re.compile(r"[A-Za-z0-9._@:/+-]{0,256}")
_LONGEST_MS: Final = 10**9
_LEAST_KEY: Final = 16  # bytes

Keys = tuple[bytes, ...]


class Caller(NamedTuple):
    """Who asks, as the sidecar knows that was asked first. Spans in milliseconds, None: without end."""

    pod: str  # that hands the request on
    tenant: str
    cls: str
    weight: float
    address: str  # the caller's
    repeat: int
    elapsed_ms: int  # since the caller first asked
    first_byte_ms: int | None  # that are left
    last_byte_ms: int | None


class Forged(Exception):
    """Not the words of a member of this mesh."""


def lines(caller: Caller, keys: Keys, about: bytes) -> bytes:
    """The three header lines. `about`: what the words belong to (see `belongs_to`)."""
    if _SAFE.fullmatch(caller.address) is None:  # a proxy's word, which may be anything
        caller = caller._replace(address="")
    words = [f"{name}={'' if value is None else value}" for name, value in caller._asdict().items()]
    text = ",".join(words).encode()
    return b"%b: 1\r\n%b: %b\r\n%b: %b\r\n" % (HOP, CALLER, text, SIGNATURE, _sign(keys[0], text, about))


def belongs_to(method: bytes, target: bytes, request_id: bytes, length: int | None) -> bytes:
    """What a signature covers beside the words. `length` of the body; None: it is chunked."""
    return b"%b %b %b %b" % (method, target, request_id, b"-" if length is None else b"%d" % length)


def read(noted: dict[bytes, bytes], keys: Keys, about: bytes) -> Caller:
    """What a peer says; raises Forged when it is no peer of ours, or makes no sense."""
    text, signature = noted.get(CALLER), noted.get(SIGNATURE, b"")
    if text is None:
        raise Forged("nobody has signed for it")
    if not any(hmac.compare_digest(_sign(key, text, about), signature) for key in keys):
        raise Forged("the signature is not ours")
    try:
        found = dict(pair.split("=", 1) for pair in text.decode("ascii").split(","))
        if not all(map(_SAFE.fullmatch, found.values())):
            raise ValueError
        return Caller(
            found["pod"],
            found["tenant"],
            found["cls"],
            min(max(float(found["weight"]), 1e-6), 1e6),
            found["address"],
            min(int(found["repeat"]), 100),
            _span(found["elapsed_ms"]) or 0,
            _span(found["first_byte_ms"]),
            _span(found["last_byte_ms"]),
        )
    except (KeyError, ValueError):  # signed, but by another version
        raise Forged("its words are not understood") from None


def read_keys(text: bytes) -> Keys:
    """The keys in a secret file, one on each of at most two lines; raises ValueError with what is wrong."""
    keys = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not 1 <= len(keys) <= 2:
        raise ValueError(f"has {len(keys)} keys; expected one, or two while they are exchanged")
    if any(len(key) < _LEAST_KEY for key in keys):
        raise ValueError(f"has a key shorter than {_LEAST_KEY} bytes")
    return keys


def _sign(key: bytes, text: bytes, about: bytes) -> bytes:
    return hmac.digest(key, b"1\n%b\n%b" % (text, about), "sha256").hex().encode()


def _span(text: str) -> int | None:
    return min(max(int(text), 0), _LONGEST_MS) if text else None
