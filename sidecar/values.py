"""What a value of the configuration may be: numbers with their bounds, names, addresses.

Every number has an upper bound, so that NaN and infinity pass nowhere. Units are in the names.
"""

import ipaddress
import re
from typing import Annotated, Final

from msgspec import Meta, Struct

DAY: Final = 86_400.0
MONTH: Final = 31 * DAY
MIB: Final = 2**20
_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._@:/+-]{0,127}$"
_LABEL: Final = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")

# `title` is what an error message says was expected.
Seconds = Annotated[float, Meta(gt=0, le=DAY, title="seconds above 0, at most 86400")]
Milliseconds = Annotated[float, Meta(gt=0, le=DAY * 1000, title="milliseconds above 0, at most 86400000")]
Count = Annotated[int, Meta(ge=1, le=10**9, title="a whole number from 1 to 1000000000")]
CountOrNone = Annotated[int, Meta(ge=0, le=10**9, title="a whole number from 0 to 1000000000")]
Amount = Annotated[float, Meta(gt=0, le=1e15, title="a number above 0, at most 1e15")]
Share = Annotated[float, Meta(ge=0, le=1, title="a number from 0 to 1")]
Bytes = Annotated[int, Meta(ge=1024, le=2**40, title="bytes, from 1024 to 1 TiB")]
# Names reach metric labels, logs and Redis keys, where `{` would start a hash tag.
Name = Annotated[str, Meta(pattern=_NAME, title="1 to 128 of letters, digits, ._@:/+- (not these first)")]
ClassName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$", title="a class: 1 to 32 of a-z, 0-9, _- (a letter first)")
]
Text = Annotated[str, Meta(min_length=1, max_length=4096, title="text of 1 to 4096 characters")]
UrlPath = Annotated[str, Meta(pattern=r"^/[!-~]*$", max_length=1024, title="a path that starts with /")]
KeyHash = Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}$", title="64 hex digits: SHA-256 of the bare key")]


def doc(meaning: str) -> Meta:
    """What a key means, for readers of this file and of the JSON Schema."""
    return Meta(description=meaning)


class Address(Struct, frozen=True):
    """Where to listen or to connect: `host:port`, `[v6]:port` or `unix:path` (`path` set, the rest empty)."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Raises ValueError with a sentence that says what is wrong."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        # The kernel's sun_path holds 108 bytes, the last of them NUL.
        if not 0 < len(path.encode()) < 108 or "\0" in path:
            raise ValueError("a unix path has 1 to 107 bytes")
        return Address(path=path)
    host, colon, port = text.rpartition(":")
    if not colon or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("expected host:port, [v6]:port or unix:path")
    if host.startswith("[") and host.endswith("]"):
        host = str(ipaddress.IPv6Address(host[1:-1]))
    elif not _HOST.fullmatch(host):
        raise ValueError("expected a host before the port (0.0.0.0 for every IPv4 interface)")
    return Address(host=host, port=int(port))
