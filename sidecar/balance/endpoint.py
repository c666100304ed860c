"""Where a request can run: the engine beside us, or the sidecar of a peer.

What is known about it comes from several sources, and each writes what it knows and nothing else:

    healthy     the active check's verdict
    hung        its work does not move, whatever the check says
    ejected     it does worse than the others of its mesh
    blocked     a connection to it was refused or broke a moment ago; longer each time, until one succeeds

An endpoint that is blocked is passed over where there is another one, and asked where there is not.
"""

from __future__ import annotations

from math import exp
from typing import Any, Final

from sidecar.balance.load import EngineLoad

_BLOCK_S: Final = 0.5  # after the first failure; twice as long after each further one,
_LONGEST_BLOCK_S: Final = 10.0  # up to this
_DECAY_S: Final = 10.0  # of the peak EWMA (linkerd2-proxy, linkerd/pool/p2c)
_PRIOR_S: Final = 0.03
_LEAST_S: Final = 0.001
_MOST: Final = 10**9


class Endpoint:
    """An address and what is known about it."""

    __slots__ = (
        "_blocks", "_estimate", "_sampled", "blocked_until", "carried", "ejected", "healthy", "host", "hung",
        "load", "max_requests", "moved", "moved_at", "name", "not_before", "path", "port", "refused",
    )  # fmt: skip

    is_peer: bool = False

    def __init__(self, host: str = "", port: int = 0, path: str = "") -> None:
        self.host = host
        self.port = port
        self.path = path  # of a unix socket, instead of host and port
        if path:
            self.name = f"unix:{path}"
        else:
            self.name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.healthy = True
        self.hung = False
        self.ejected = False
        self.blocked_until = 0.0
        self.max_requests = _MOST  # that it works on at once, of any kind
        self.not_before = 0.0  # it refused one, and said when to return
        self.carried: dict[Any, None] = {}  # exchanges that it works on, in the order of their dispatch
        self.moved = 0  # tokens and answers that have come from it: whether it does anything at all
        self.moved_at = 0.0  # when progress of any kind was last seen
        self.load = EngineLoad()  # what it says of itself
        self.refused = 0  # connections; a reason to check its health at once
        self._blocks = 0
        self._estimate = _PRIOR_S
        self._sampled = 0.0

    @property
    def in_flight(self) -> int:
        """How many exchanges it works on."""
        return len(self.carried)

    @property
    def usable(self) -> bool:
        """No source of truth speaks against it."""
        return self.healthy and not self.hung and not self.ejected

    def block(self, now: float) -> None:
        """It refused a connection, or broke one off."""
        if now >= self.blocked_until:  # those that were under way together are one failure
            self.blocked_until = now + min(_BLOCK_S * 2**self._blocks, _LONGEST_BLOCK_S)
            self._blocks = min(self._blocks + 1, 16)

    def unblock(self) -> None:
        """It answered."""
        if self._blocks:
            self._blocks = 0
            self.blocked_until = 0.0

    def sample(self, seconds: float, now: float) -> None:
        """A first byte came after `seconds`: longer than usual counts at once, shorter slowly."""
        if seconds > self._estimate:
            self._estimate = seconds
        else:
            weight = 1 - exp((self._sampled - now) / _DECAY_S)
            self._estimate += (max(seconds, _LEAST_S) - self._estimate) * weight
        self._sampled = now

    def expected_s(self, now: float) -> float:
        """Peak EWMA of the time to a first byte; forgotten while nothing is asked of it."""
        return max(self._estimate * exp((self._sampled - now) / _DECAY_S), _LEAST_S)
