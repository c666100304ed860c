"""Addresses, and rules that structs keep by themselves."""

import pytest

from sidecar.errors import ConfigError
from sidecar.settings import Address, Config, Engine, Limit, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", Address(host="127.0.0.1", port=80)),
        ("my-engine.ns.svc:0", Address(host="my-engine.ns.svc", port=0)),
        ("[::1]:65535", Address(host="::1", port=65535)),
        ("unix:/run/e.sock", Address(path="/run/e.sock")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "h", "h:", ":1", "h:65536", "h:-1", "h:٣", "::1:1", "[::1]", "[x]:1", "unix:", "unix:" + "a" * 108],
)
def test_not_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_address(text)


def test_burst_in_force() -> None:
    assert Limit(name="a", limit=600).capacity == 100
    assert Limit(name="a", limit=1).capacity == 1
    assert Limit(name="a", limit=600, burst=7).capacity == 7


def test_headers_are_case_insensitive() -> None:
    assert Limit(name="a", limit=1, by=("header:X-Team",)).by == ("header:x-team",)


def test_rules_hold_without_a_file() -> None:
    engine = Engine(address=parse_address("127.0.0.1:8000"))
    assert Config(engine=engine).tenants[0].name == "anonymous"
    with pytest.raises(ConfigError, match="health_listen: is the same address as admin"):
        Config(engine=engine, health_listen=parse_address("127.0.0.1:9911"))
