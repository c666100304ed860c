"""Finds the engines that fail more than their peers, exactly as Envoy does (outlier_detection_impl.cc).

1. In a row: a counter fires when it *equals* its limit, and is reset then, whatever became of it, so it fires
   again after as many failures. Of a 503 the gateway counter comes first. While an engine is out, counters go
   on and nothing fires. Answers below 500 reset all counters.
2. Every interval, in this order: ejections that are over end and clear the counters; the interval's numbers
   become the last interval's; rates are judged; ejection times of those that were in for an interval shrink.
3. Success rate, 0 to 100: ejected below mean - factor / 1000 x population deviation, of engines with enough
   requests, if there are enough of these. Failure percentage: ejected from its threshold on.

Where it differs: an engine that success rate has just ejected is not ejected again by failure percentage
(Envoy counts it twice); failures of local origin count in a row by themselves besides counting as their
status; and an engine that is down by its health check is no suspect, no peer to compare with, and takes no
place under the cap: its ejection ends there, for when it is well again it starts anew, slowly.

Whether a suspicion ejects is decided by `decide`, at once (Envoy's way: `decide_locally`) or later (a ticket
of the whole mesh: `eject`). It is asked once for each time a counter fires.
"""

from __future__ import annotations

from enum import Enum
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Final, NamedTuple

from sidecar.balance.ejection import Ejection, State, Terms, most_out

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sidecar.balance.outcome import Outcome

_GATEWAY: Final = (502, 503, 504)


class Why(Enum):
    """What an engine is suspected for; most are named like the keys of the configuration."""

    GATEWAY = "consecutive_gateway_failure"
    FIVE_XX = "consecutive_5xx"
    LOCAL = "consecutive_local_origin_failure"
    SUCCESS_RATE = "success_rate"
    FAILURES = "failure_percentage"
    SLOW_START = "slow_first_token"
    SLOW_TOKENS = "slow_tokens"


class Rules(NamedTuple):
    """Named, and by default, like the keys of the configuration."""

    interval_s: float = 10.0
    consecutive_5xx: int = 5
    consecutive_gateway_failure: int = 5
    consecutive_local_origin_failure: int = 5
    enforcing_consecutive_5xx: int = 100
    enforcing_consecutive_gateway_failure: int = 0
    enforcing_consecutive_local_origin_failure: int = 100
    enforcing_success_rate: int = 100
    enforcing_failure_percentage: int = 0
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: int = 1900
    failure_percentage_threshold: int = 85
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50
    max_ejection_time_jitter_s: float = 5.0
    local_max_ejection_percent: int = 10


class Suspicion(NamedTuple):
    """`value` beyond `threshold`: failures in a row, or percent of an interval's answers, of which the peers'
    mean is `usual`; for slowness see `gray`. Only an `enforced` one ejects."""

    name: str
    why: Why
    value: float
    threshold: float
    usual: float | None = None
    enforced: bool = True


class Host:
    """What is known of one engine. `volume` and `rate` (percent) are of the last interval."""

    __slots__ = ("_answers", "_heard", "_successes", "ejection", "healthy", "name", "rate", "runs", "volume")

    def __init__(self, name: str, terms: Terms, healthy: bool) -> None:
        self.name = name
        self.healthy = healthy
        self.ejection = Ejection(terms)
        self.runs: dict[Why, int] = {}  # failures in a row
        self.volume = 0
        self.rate = 100.0
        self._answers = self._successes = 0
        self._heard: tuple[int, int] | None = None

    @property
    def is_comparable(self) -> bool:
        """It serves, so that it may be suspected, and others compared with it."""
        return self.healthy and not self.ejection.is_out

    def count(self, success: bool) -> None:
        self._answers += 1
        self._successes += success

    def hear(self, volume: int, successes: int) -> None:
        """Its own sidecar, which sees all of its traffic, says so of its last interval."""
        self._heard = volume, max(min(successes, volume), 0)

    def close(self) -> None:
        """The interval is over. What was heard counts for one: a sidecar that is silent says nothing."""
        self.volume, successes = self._heard or (self._answers, self._successes)
        self.rate = 100 * successes / self.volume if self.volume else 100.0
        self._answers = self._successes = 0
        self._heard = None


class Outliers:
    """A set of engines, told what happened to them. `chance` gives numbers from 0 to below 1."""

    def __init__(
        self,
        rules: Rules,
        terms: Terms,
        chance: Callable[[], float],
        decide: Callable[[Suspicion, float], None] | None = None,
    ) -> None:
        self.hosts: dict[str, Host] = {}
        self.detected = dict.fromkeys(Why, 0)
        self.ejected = dict.fromkeys(Why, 0)
        self.overflow = 0  # suspicions that found the cap reached
        self._rules = rules
        self._terms = terms
        self._chance = chance
        self._decide = decide or self.decide_locally
        self._limits = {
            Why.GATEWAY: rules.consecutive_gateway_failure,
            Why.FIVE_XX: rules.consecutive_5xx,
            Why.LOCAL: rules.consecutive_local_origin_failure,
        }
        self._enforcing = {
            Why.GATEWAY: rules.enforcing_consecutive_gateway_failure,
            Why.FIVE_XX: rules.enforcing_consecutive_5xx,
            Why.LOCAL: rules.enforcing_consecutive_local_origin_failure,
            Why.SUCCESS_RATE: rules.enforcing_success_rate,
            Why.FAILURES: rules.enforcing_failure_percentage,
        }

    # Who there is.

    def set_members(self, names: Collection[str]) -> None:
        """The engines of the mesh; who is new is well until the contrary is said."""
        for name in self.hosts.keys() - set(names):
            del self.hosts[name]
        for name in names:
            if name not in self.hosts:
                self.hosts[name] = Host(name, self._terms, healthy=True)

    def set_health(self, name: str, healthy: bool, now: float) -> bool:
        """What the health check says. True: an ejection ended by it."""
        host = self.hosts.get(name)
        if host is None or host.healthy is healthy:
            return False
        host.healthy = healthy
        host.runs.clear()
        was_out = host.ejection.is_out
        if healthy or was_out:
            host.ejection.end(now)
        return was_out

    # What happens.

    def put(self, name: str, outcome: Outcome, now: float) -> None:
        """An exchange with `name` ended."""
        code = outcome.code
        host = self.hosts.get(name)
        if not code or host is None:
            return
        host.count(code < 500)
        if code < 500:
            host.runs.clear()
            return
        self._run(host, Why.GATEWAY, code in _GATEWAY, now)
        self._run(host, Why.FIVE_XX, True, now)
        self._run(host, Why.LOCAL, outcome.local, now)

    def suspect(self, suspicion: Suspicion, now: float) -> None:
        """Count it, and have it decided, if its engine is one that can be suspected."""
        host = self.hosts.get(suspicion.name)
        if host is None or not host.is_comparable:
            return
        self.detected[suspicion.why] += 1
        share = self._enforcing.get(suspicion.why, 100)
        self._decide(suspicion._replace(enforced=int(100 * self._chance()) < share), now)

    def sweep(self, now: float) -> list[str]:
        """Once every interval. Returns whose ejection ended, on probation or not."""
        over = []
        for host in self.hosts.values():
            was_ejected = host.ejection.state is State.OUT
            if host.ejection.pass_time(now):
                host.runs.clear()
                if was_ejected:
                    over.append(host.name)
            host.close()
        self._judge_rates(now)
        for host in self.hosts.values():
            host.ejection.forgive(now, self._rules.interval_s)
        return over

    def on_tried(self, name: str, probe: int, good: bool | None, now: float) -> bool:
        """How an exchange on probation went (`Ejection.try_one`). False: the engine is ejected again, without
        a question, since it holds its place under the cap."""
        host = self.hosts.get(name)
        if host is None:
            return True
        if host.ejection.on_tried(probe, good, now):
            if not host.ejection.is_out:
                host.runs.clear()
            return True
        host.ejection.eject(now, self.jitter_s())
        return False

    # What follows from it.

    @property
    def out(self) -> int:
        """How many take a place under the cap."""
        return sum(host.ejection.is_out for host in self.hosts.values())

    def decide_locally(self, suspicion: Suspicion, now: float, elsewhere: int = 0) -> None:
        """Eject if the cap that holds without Redis leaves room, beside so many whom others have ejected."""
        if self.out + elsewhere >= most_out(len(self.hosts), self._rules.local_max_ejection_percent):
            self.overflow += 1
        elif suspicion.enforced:
            self.eject(suspicion, now)

    def eject(self, suspicion: Suspicion, now: float) -> bool:
        """Eject; the cap has been asked. False: it left, is down or out already: give its ticket back."""
        host = self.hosts.get(suspicion.name)
        if host is None or not host.is_comparable:
            return False
        self.ejected[suspicion.why] += 1
        return host.ejection.eject(now, self.jitter_s())

    def trim(self, now: float) -> list[str]:
        """End the ejections nearest to their end until the local cap holds: members may have left."""
        out = [host for host in self.hosts.values() if host.ejection.is_out]
        out.sort(key=lambda host: (host.ejection.state is State.OUT, host.ejection.until))
        surplus = out[: max(len(out) - most_out(len(self.hosts), self._rules.local_max_ejection_percent), 0)]
        for host in surplus:
            host.ejection.end(now)
            host.runs.clear()
        return [host.name for host in surplus]

    def _run(self, host: Host, why: Why, counts: bool, now: float) -> None:
        if not counts:
            host.runs.pop(why, None)
            return
        length = host.runs[why] = host.runs.get(why, 0) + 1
        if length == self._limits[why] and host.is_comparable:
            self.suspect(Suspicion(host.name, why, length, length), now)
            host.runs[why] = 0

    def _judge_rates(self, now: float) -> None:
        rules = self._rules
        peers = [host for host in self.hosts.values() if host.is_comparable]
        rated = [host for host in peers if host.volume >= rules.success_rate_request_volume]
        counted = [host for host in peers if host.volume >= rules.failure_percentage_request_volume]
        if len(rated) >= rules.success_rate_minimum_hosts:
            rates = [host.rate for host in rated]
            mean = fmean(rates)
            threshold = mean - rules.success_rate_stdev_factor / 1000 * pstdev(rates, mean)
            for host in rated:
                if host.rate < threshold:
                    self.suspect(Suspicion(host.name, Why.SUCCESS_RATE, host.rate, threshold, mean), now)
        if len(counted) >= rules.failure_percentage_minimum_hosts:
            limit = rules.failure_percentage_threshold
            for host in counted:
                if 100 - host.rate >= limit:
                    self.suspect(Suspicion(host.name, Why.FAILURES, 100 - host.rate, limit), now)

    def jitter_s(self) -> float:
        """By how much the next ejection is longer than it would be."""
        return int(self._chance() * (1000 * self._rules.max_ejection_time_jitter_s + 1)) / 1000
