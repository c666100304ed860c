"""What this pod is doing, for everyone who has to know: probes, balancers, callers."""

from __future__ import annotations


class Lifecycle:
    """Flags that the data plane sets and others read, from any thread."""

    __slots__ = ("beat", "draining", "lag_s", "lagging", "serving")

    def __init__(self) -> None:
        self.serving = False  # the listener is open
        self.draining = False  # on the way out: nothing new is accepted
        self.lagging = False  # the event loop is too late to be of use
        self.lag_s = 0.0
        self.beat = 0.0  # when the event loop last turned
