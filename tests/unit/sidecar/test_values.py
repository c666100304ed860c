"""Addresses as they are written."""

import pytest

from sidecar.values import Address, parse_address

LONGEST = ".".join(["a" * 63] * 3 + ["b" * 61])  # 253 characters


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("my-engine.ns.svc:0", Address(host="my-engine.ns.svc", port=0)),
        ("[::1]:65535", Address(host="::1", port=65535)),
        ("unix:/run/e.sock", Address(path="/run/e.sock")),
        ("a-b.c_d.e--f:1", Address(host="a-b.c_d.e--f", port=1)),
        (f"{LONGEST}:1", Address(host=LONGEST, port=1)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    [
        *["", "h", "h:", ":1", "h:65536", "h:-1", "h:٣", "::1:1", "[::1]", "[x]:1"],
        *["unix:", "unix:" + "a" * 108],
        # A label is not empty, neither begins nor ends with a hyphen, and has at most 63 characters.
        *["a..b:1", ".a:1", "a.:1", "-a:1", "a-:1", "a.-b:1", "a-.b:1", "a\n:1"],
        *[f"{'a' * 64}:1", f"a.{'b' * 64}.c:1", f"{LONGEST}b:1"],
    ],
)
def test_not_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)
