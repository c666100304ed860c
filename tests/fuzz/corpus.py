"""Where a search for trouble begins: whole connections in `seeds/`, and pieces of HTTP/1.1.

A seed is what a client, or an engine, sends on one connection, byte for byte. A name that begins
with `refused-` says that it is refused. One that begins with `found-` once broke a property.
"""

from pathlib import Path
from typing import Final

SEEDS: Final = Path(__file__).parent / "seeds"
REFUSED: Final = "refused-"
FOUND: Final = "found-"

TOKENS: Final = [
    b"", b" ", b"  ", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\n\n", b"\0", b"\x0b", b"\x0c", b"\x7f",
    b"\x80", b"\xff", b":", b";", b",", b"#", b"?", b"/", b"\\", b'"', b"@", b"%", b"+", b"-", b"_", b"[",
    b"]", b"0", b"1", b"5", b"9", b"a", b"f", b"x", b"0x", b"*", b"0\r\n\r\n", b"1\r\na\r\n", b";a=b",
    b"a: b\r\n", b" a: b\r\n", b"a : b\r\n", b"host: b\r\n", b"Host:", b"content-length: 1\r\n",
    b"Content-Length: 0\r\n", b"content-length: 01\r\n", b"transfer-encoding: chunked\r\n",
    b"Transfer-Encoding: Chunked\r\n", b"transfer-encoding: gzip, chunked\r\n",
    b"transfer-encoding: identity\r\n", b"connection: close\r\n", b"connection: keep-alive\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n", b"content-type: a/b\r\n", b"expect: 100-continue\r\n",
    b"max-forwards: 0\r\n", b"chunked", b"close", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0",
    b"RTSP/1.0", b"ICE/1.0", b"GET ", b"HEAD", b"OPTIONS", b"TRACE ", b"CONNECT ", b"POST / HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\n", b"http://", b"https://a:1", b"200 OK", b"HTTP/1.1 200 OK\r\n", b"100 ",
    b"103 ", b"204", b"304", b"101", b"099", b"600",
]  # fmt: skip


def seeds(target: str) -> dict[str, bytes]:
    """The seeds of `requests` or `answers` by their names."""
    return {path.name: path.read_bytes() for path in sorted((SEEDS / target).iterdir())}
