"""What was seen of one run. Times are in seconds after its start.

Counters are sampled: a request is new in the first sample that has it. They are sums of what ended and of
what runs, which may be read just as one becomes the other, and so fall a little; one that falls to less than
half is that of a process that was started again. A pod that does not answer has no samples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from mesh.bench.origin import Origin


class Count(NamedTuple):
    """Requests that a pod was sent up to a time."""

    at: float
    requests: float


class Running(NamedTuple):
    """Requests that run in an engine at a time."""

    at: float
    requests: float


class Ejected(NamedTuple):
    """The pods that are ejected at a time, by their numbers."""

    at: float
    pods: frozenset[int]


@dataclass(slots=True)
class Seen:
    """Samples of a system while a run went on; the inner lists are of one pod each."""

    counts: list[list[Count]]
    running: list[list[Running]]
    ejected: list[Ejected] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A run and what its judge has to know of it."""

    origins: Sequence[Origin]
    seen: Seen
    victims: frozenset[int]  # pods that are broken
    from_s: float  # when
    to_s: float  # the last request is asked, and the fault may end
    over_s: float  # nobody looks any more
    cap: int  # pods that may be ejected at any time
    seats: int  # requests that fill an engine
    healthy: "Evidence | None" = None  # the same load while nothing was broken

    @property
    def pods(self) -> int:
        return len(self.seen.counts)

    @property
    def well(self) -> Sequence[int]:
        """Pods that nobody breaks."""
        return [pod for pod in range(self.pods) if pod not in self.victims]

    def asked(self, from_s: float, to_s: float) -> list[Origin]:
        """Who asked first in this time."""
        return [each for each in self.origins if from_s <= each.ask.at < to_s]

    def arrivals(self, pod: int, from_s: float, to_s: float) -> list[float]:
        """When new requests of this pod were seen; as often as there were."""
        return [
            at
            for at, new in arrivals(self.seen.counts[pod])
            if from_s < at <= to_s
            for _ in range(new)
        ]


def arrivals(counts: Sequence[Count]) -> Iterator[tuple[float, int]]:
    """When the counter rose, and by how much."""
    most = counts[0].requests if counts else 0.0
    for at, requests in counts[1:]:
        if requests < most / 2:
            most = 0.0
        if requests > most:
            yield at, round(requests - most)
            most = requests
