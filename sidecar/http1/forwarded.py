"""Whose word about a caller is believed (`trusted_proxies`).

A trusted proxy's `X-Forwarded-For` is read from the right: the first address that is not a trusted
proxy's own is the caller. Anybody else's is replaced by the address the connection comes from.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_CACHED: Final = 4096


class Trust:
    """The trusted networks, with a bounded memory of addresses looked up."""

    __slots__ = ("_known", "_networks")

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)
        self._known: dict[str, bool] = {}

    def covers(self, address: str) -> bool:
        """Whether `address` is a trusted proxy's; what is no address is not."""
        if not self._networks:
            return False
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= _CACHED:
                self._known.clear()
            known = self._known[address] = self._look_up(address)
        return known

    def origin(self, peer: str, forwarded_for: bytes) -> str:
        """The caller behind the trusted proxy `peer` which sent this `X-Forwarded-For`."""
        caller = peer
        for hop in reversed(forwarded_for.decode("latin-1").split(",")):
            caller = hop.strip()
            if not self.covers(caller):
                break
        return caller[:64] or peer

    def _look_up(self, address: str) -> bool:
        try:
            ip = ipaddress.ip_address(address)
        except ValueError:
            return False
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return any(ip in network for network in self._networks)
