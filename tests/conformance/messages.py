"""What the conformance tests send, beyond what the harness has."""

from typing import Final

from tests.harness.wire import Wire

CHUNKED: Final = b"transfer-encoding: chunked"
TRUSTING: Final = "trusted_proxies: [192.0.2.0/24]"


def raw(*lines: str) -> bytes:
    """A head of these very lines."""
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def names(wire: Wire) -> set[bytes]:
    """Of the fields that the engine got with its next request."""
    return {name for name, _ in wire.engine.request().fields}
