"""Requests that must be refused, and for which reason."""

from typing import Final

_POST: Final = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n"
_GET: Final = b"GET / HTTP/1.1\r\nhost: a\r\n"

MALFORMED: Final = tuple(
    (data, "malformed")
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        _GET + b"host: b\r\n\r\n",
        _GET + b"a: folded\r\n line\r\n\r\n",
        _GET + b"space : before the colon\r\n\r\n",
        _GET + b"nul: \x00\r\n\r\n",
        _GET + b"no colon\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET /# HTTP/1.1\r\nhost: a\r\n\r\n",
        b"GET path HTTP/1.1\r\nhost: a\r\n\r\n",
        b"G\x80T / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"\x00\x01\x02\x03",
        _POST + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        _POST + b"content-length: 4\r\ncontent-length: 4\r\n\r\nbody",
        _POST + b"content-length: 4, 4\r\n\r\nbody",
        _POST + b"content-length: -4\r\n\r\nbody",
        _POST + b"content-length: 0x4\r\n\r\nbody",
        _POST + b"transfer-encoding: chunked\r\n\r\nwhat\r\nbody\r\n0\r\n\r\n",
        _POST + b"transfer-encoding: chunked\r\n\r\n4\r\nbody too long\r\n0\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbodywhat\r\n0\r\n\r\n",
        b"POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    )
)
# After each of these the connection ends.
REFUSED: Final = (
    *MALFORMED,
    (b"GET / HTTP/2.0\r\nhost: a\r\n\r\n", "version"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "version"),
    (b"CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n", "not_implemented"),
    (_POST + b"transfer-encoding: gzip\r\n\r\n", "not_implemented"),
    (_GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n", "not_implemented"),
    (_GET + b"expect: the worst\r\n\r\n", "expectation"),
    (b"GET /%b HTTP/1.1\r\nhost: a\r\n\r\n" % (b"x" * 20_000), "uri_too_long"),
    (_GET + b"a: b\r\n" * 120 + b"\r\n", "headers_too_large"),
    (_GET + b"a: %b\r\n\r\n" % (b"x" * 100_000), "headers_too_large"),
    (_POST + b"content-length: 300000\r\n\r\n" + b"x" * 1000, "body_too_large"),
    (_POST + b"transfer-encoding: chunked\r\n\r\n49400\r\n" + b"x" * 300_032, "body_too_large"),
)
# Refused too, but nothing is wrong with the connection.
FORBIDDEN: Final = (
    (_POST.replace(b"/v1/completions", b"/sleep") + b"content-length: 0\r\n\r\n", "forbidden"),
    (b"GET /wake_up HTTP/1.1\r\nhost: a\r\n\r\n", "forbidden"),
)
