"""Whose word about a caller is believed."""

import pytest

from sidecar.http1.forwarded import Trust

TRUST = Trust(["10.0.0.0/8", "fd00::/8", "192.0.2.1/32"])


@pytest.mark.parametrize("address", ["10.1.2.3", "fd00::1", "192.0.2.1", "::ffff:10.1.2.3"])
def test_covered(address: str) -> None:
    assert TRUST.covers(address)
    assert TRUST.covers(address)


@pytest.mark.parametrize("address", ["11.0.0.1", "fe80::1%eth0", "", "who", "::ffff:11.0.0.1", "10.0.0.0/8"])
def test_not_covered(address: str) -> None:
    assert not TRUST.covers(address)
    assert not Trust([]).covers(address)


@pytest.mark.parametrize(
    ("forwarded", "caller"),
    [
        (b"203.0.113.9", "203.0.113.9"),
        (b"6.6.6.6, 203.0.113.9", "203.0.113.9"),  # what the caller wrote itself is not believed
        (b"203.0.113.9, 10.0.0.2,fd00::7", "203.0.113.9"),
        (b"10.0.0.2, 10.0.0.3", "10.0.0.2"),
        (b"unknown, 10.0.0.3", "unknown"),
        (b"", "10.0.0.1"),
        (b"x" * 100, "x" * 64),
    ],
)
def test_the_caller_is_the_last_that_no_trusted_proxy_vouches_past(forwarded: bytes, caller: str) -> None:
    assert TRUST.origin("10.0.0.1", forwarded) == caller


def test_its_memory_is_bounded() -> None:
    trust = Trust(["10.0.0.0/8"])
    for i in range(10_000):
        trust.covers(f"10.0.{i >> 8}.{i & 255}")
    assert len(trust._known) <= 4096
