"""How the engine answers: one function for each fault (see `faults`)."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from tests.chaos.faults import FAULTS, HINTS
from tests.chaos.line import reset

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.chaos.engine import Asked, Connection

_CHUNKED: Final = b"transfer-encoding: chunked"
_SSE: Final = b"content-type: text/event-stream"
_LAST_CHUNK: Final = b"0\r\n\r\n"
_HALF_HEAD: Final = b"HTTP/1.1 200 OK\r\ncontent-le"
_PADDING: Final = b"x-padding: " + b"x" * 1000
_PAUSE_S: Final = 0.004
_DEAF_S: Final = 3.0  # longer than anybody waits for a first byte
_MODELS: Final = b'{"object":"list","data":[{"id":"m"}]}'
_NOISE: Final = b"\x00\x01noise\r\n\r\n"
# Behind an answer: a reader that does not stop gives it to the next request, or swallows that one's answer.
POISON: Final = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\npoison",
    b"HTTP/1.1 200 OK\r\ncontent-length: 9999\r\n\r\npoison",
    b"HTTP/1.1 200 OK\r\nx-poison: ",
    b"poison",
)
# Heads that nobody may take for an answer's.
_MALFORMED: Final = (
    b"HTTP/1.1 two hundred\r\n",
    b"HTTP/1.1 99 Low\r\n",
    b"HTTP/2.0 200 OK\r\n",
    b"ICY 200 OK\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n",
    b"HTTP/1.1 200 OK\r\nno colon\r\n",
    b"HTTP/1.1 200 OK\r\nspace : before the colon\r\n",
    b"HTTP/1.1 200 OK\r\na: folded\r\n line\r\n",
    b"HTTP/1.1 200 OK\r\nnul: \x00\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ncontent-length: 5\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: -4\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 4x\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n",
    b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked, chunked\r\n",
    b"\xff\xfe\xfd",
)


def _head(status: bytes, *fields: bytes) -> bytes:
    return b"HTTP/1.1 %b\r\n%b\r\n" % (status, b"".join(field + b"\r\n" for field in fields))


def _length(asked: Asked) -> bytes:
    return b"content-length: %d" % asked.size


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _thirds(data: bytes) -> list[bytes]:
    step = len(data) // 3 + 1
    return [data[i : i + step] for i in range(0, len(data), step)]


def _whole(
    c: Connection, asked: Asked, *fields: bytes, status: bytes = b"200 OK", behind: bytes = b""
) -> None:
    shown = b"" if asked.method == b"HEAD" else asked.answer
    c.write(_head(status, _length(asked), *fields), shown, behind)


def _half(c: Connection, asked: Asked, *fields: bytes) -> None:
    c.write(_head(b"200 OK", *fields), asked.answer[: asked.size // 2])


# Engines that are well, each in its way.


def _ok(c: Connection, asked: Asked) -> None:
    _whole(c, asked)


def _models(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK", b"content-length: %d" % len(_MODELS)), _MODELS)


def _chunked(c: Connection, asked: Asked) -> None:
    body = b"".join(map(_chunk, _thirds(asked.answer))) + _LAST_CHUNK
    c.write(_head(b"200 OK", _CHUNKED), b"" if asked.method == b"HEAD" else body)


def _sse(c: Connection, asked: Asked) -> None:
    parts = [] if asked.method == b"HEAD" else [*map(_chunk, _thirds(asked.answer)), _LAST_CHUNK]
    c.write_slowly([_head(b"200 OK", _CHUNKED, _SSE), *parts], _PAUSE_S)


def _until_close(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK"), b"" if asked.method == b"HEAD" else asked.answer)
    c.transport.close()


def _busy(c: Connection, asked: Asked) -> None:
    _whole(c, asked, status=b"503 Service Unavailable")


def _no_content(c: Connection, asked: Asked) -> None:
    c.write(_head((b"204 No Content", b"304 Not Modified")[asked.size % 2]))


def _drip(c: Connection, asked: Asked) -> None:
    """The head in three pieces, the body in five."""
    head = _head(b"200 OK", _length(asked))
    whole = head if asked.method == b"HEAD" else head + asked.answer
    ends = [8, len(head) - 3, *range(len(head) + 1, len(whole), asked.size // 5 + 1)]
    c.write_slowly([whole[a:b] for a, b in itertools.pairwise([0, *ends, len(whole)])], _PAUSE_S)


def _close(c: Connection, asked: Asked) -> None:
    _whole(c, asked, b"connection: close")
    c.transport.close()


# Odd, but the answer is whole.


def _interim(c: Connection, asked: Asked) -> None:
    c.write(_head(b"103 Early Hints", b"link: </a>") * HINTS)
    _whole(c, asked)


def _large_head(c: Connection, asked: Asked) -> None:
    _whole(c, asked, *[_PADDING] * 50)


def _early(c: Connection, asked: Asked) -> None:
    _whole(c, asked)
    if asked.size % 3 == 0:
        c.transport.close()


def _goodbye(c: Connection, asked: Asked) -> None:
    _whole(c, asked)
    c.soon(c.hang_up)


def _excess(c: Connection, asked: Asked) -> None:
    _whole(c, asked, behind=POISON[asked.size % len(POISON)])
    c.spoilt = True


def _noise(c: Connection, asked: Asked) -> None:
    def make_noise() -> None:
        c.spoilt = True
        c.write(_NOISE)

    _whole(c, asked)
    c.soon(make_noise)


def _long(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK", _length(asked)), asked.answer, b"and more")
    c.spoilt = True


# No answer.


def _hangup(c: Connection, asked: Asked) -> None:
    c.transport.close()


def _reset(c: Connection, asked: Asked) -> None:
    reset(c.transport)


def _half_head(c: Connection, asked: Asked) -> None:
    c.write(_HALF_HEAD)
    c.hang_up()


def _mute(c: Connection, asked: Asked) -> None:
    """Whoever waits must have enough at some time."""


def _half_head_mute(c: Connection, asked: Asked) -> None:
    c.write(_HALF_HEAD)


def _deaf(c: Connection, asked: Asked) -> None:
    """Nor does it hear that the sidecar has given up, so it ends by itself."""
    c.transport.pause_reading()
    c.wait(_DEAF_S, c.transport.abort)


def _malformed(c: Connection, asked: Asked) -> None:
    c.write(_MALFORMED[asked.size % len(_MALFORMED)], b"\r\n", asked.answer)


def _huge_head(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK", *[_PADDING] * 400))


# Half an answer.


def _cut_head(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK", _length(asked)))
    c.hang_up()


def _cut_body(c: Connection, asked: Asked) -> None:
    _half(c, asked, _length(asked))
    c.soon(c.hang_up)


def _cut_chunk(c: Connection, asked: Asked) -> None:
    part = _chunk(asked.answer)
    c.write(_head(b"200 OK", _CHUNKED), part[: len(part) // 2])
    c.soon(c.hang_up)


def _cut_sse(c: Connection, asked: Asked) -> None:
    c.write(_head(b"200 OK", _CHUNKED, _SSE), _chunk(asked.answer[: asked.size // 2]))
    c.soon(c.hang_up)


def _cut_until_close(c: Connection, asked: Asked) -> None:
    _half(c, asked)
    c.soon(lambda: reset(c.transport))


def _short(c: Connection, asked: Asked) -> None:
    _half(c, asked, _length(asked))
    c.transport.close()


def _bad_chunk(c: Connection, asked: Asked) -> None:
    first, *_, last = _thirds(asked.answer)
    c.write_slowly([_head(b"200 OK", _CHUNKED) + _chunk(first), b"what\r\n" + _chunk(last)], _PAUSE_S)


def _stall(c: Connection, asked: Asked) -> None:
    _half(c, asked, _length(asked))


ANSWERS: Final[dict[str, Callable[[Connection, Asked], None]]] = {
    "models": _models,  # what a sidecar asks by itself
    "ok": _ok,
    "chunked": _chunked,
    "sse": _sse,
    "until_close": _until_close,
    "busy": _busy,
    "no_content": _no_content,
    "drip": _drip,
    "big": _ok,
    "close": _close,
    "interim": _interim,
    "large_head": _large_head,
    "early": _early,
    "goodbye": _goodbye,
    "excess": _excess,
    "noise": _noise,
    "long": _long,
    "hangup": _hangup,
    "reset": _reset,
    "half_head": _half_head,
    "mute": _mute,
    "half_head_mute": _half_head_mute,
    "deaf": _deaf,
    "malformed": _malformed,
    "huge_head": _huge_head,
    "cut_head": _cut_head,
    "cut_body": _cut_body,
    "cut_chunk": _cut_chunk,
    "cut_sse": _cut_sse,
    "cut_until_close": _cut_until_close,
    "short": _short,
    "bad_chunk": _bad_chunk,
    "stall": _stall,
}
assert ANSWERS.keys() - {"models"} == FAULTS.keys()
# They do not wait for the request's body.
AT_ONCE: Final = frozenset({"early", "deaf"})
