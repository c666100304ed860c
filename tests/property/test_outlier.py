"""Who is out, over whatever results, sweeps, health, members and time hypothesis finds.

Under the local cap there are never more engines out than it allows, and none that is down by its health
check. Each ejection lasts as long as its number says, and no longer than the longest; it ends early only with
the engine's health or for the cap's sake. Whoever is out comes back.
"""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sidecar.balance.ejection import State, Terms, most_out
from sidecar.balance.outcome import NOTHING, SUCCESS, Outcome
from sidecar.balance.outlier import Outliers, Rules, Suspicion, Why

NAMES = [str(number) for number in range(12)]
BASE_S, JITTER_S, INTERVAL_S = 30.0, 5.0, 10.0
MOST_S = {0: 75.0, 1: 300.0}

names = st.sampled_from(NAMES)
outcomes = st.sampled_from(
    [NOTHING, SUCCESS, Outcome(500), Outcome(503), Outcome(503, local=True), Outcome(504, local=True)]
)


class Machine(RuleBasedStateMachine):
    @initialize(
        percent=st.sampled_from((0, 10, 20, 50, 100)),
        probes=st.sampled_from((0, 1, 3)),
        longest=st.sampled_from((0, 1)),
        members=st.integers(1, len(NAMES)),
        chances=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=5),
    )
    def begin(self, percent: int, probes: int, longest: int, members: int, chances: list[float]) -> None:
        self.now = self.swept = 0.0
        self.percent = percent
        self.most_s = MOST_S[longest]
        self.chances = chances
        self.probes: dict[str, list[int]] = {}
        terms = Terms(BASE_S, self.most_s, slow_start_s=30.0, probes=probes)
        rules = Rules(
            consecutive_5xx=3,
            consecutive_gateway_failure=3,
            consecutive_local_origin_failure=2,
            enforcing_consecutive_gateway_failure=50,
            enforcing_failure_percentage=100,
            success_rate_minimum_hosts=3,
            success_rate_request_volume=4,
            success_rate_stdev_factor=1000,
            failure_percentage_minimum_hosts=2,
            failure_percentage_request_volume=2,
            max_ejection_time_jitter_s=JITTER_S,
            local_max_ejection_percent=percent,
        )
        self.found = Outliers(rules, terms, self.chance)
        self.found.set_members(NAMES[:members])
        self.remember()

    def chance(self) -> float:
        self.chances.append(self.chances.pop(0))
        return self.chances[0]

    def remember(self) -> None:
        ejections = {name: host.ejection for name, host in self.found.hosts.items()}
        self.before = {name: (one.state, one.until, one.times) for name, one in ejections.items()}

    def check(self, *, may_end: bool = False, tried: str | None = None) -> None:
        """What changed since `remember` may have changed."""
        for name, host in self.found.hosts.items():
            ejection = host.ejection
            was, until, times = self.before.get(name, (State.IN, 0.0, 0))
            if ejection.state is State.OUT and (was, until) != (State.OUT, ejection.until):
                self.on_ejected(name, was, times, tried)
            elif was is not State.IN and ejection.state is not was:
                assert may_end or name == tried or self.now >= until, "before its time"
        self.remember()

    def on_ejected(self, name: str, was: State, times: int, tried: str | None) -> None:
        ejection = self.found.hosts[name].ejection
        assert was is not State.PROBATION or name == tried
        lasts = ejection.until - self.now
        usual = min(BASE_S * (times + 1), self.most_s)
        assert usual <= lasts + 1e-6
        assert lasts <= usual + JITTER_S + 1e-6
        assert lasts <= self.most_s + JITTER_S + 1e-6
        assert ejection.times <= times + 1

    @rule(name=names, outcome=outcomes, number=st.integers(1, 6))
    def ends(self, name: str, outcome: Outcome, number: int) -> None:
        for _ in range(number):
            self.found.put(name, outcome, self.now)
        self.check()

    @rule(outcome=outcomes, number=st.integers(1, 6))
    def ends_everywhere(self, outcome: Outcome, number: int) -> None:
        for name in NAMES:
            for _ in range(number):
                self.found.put(name, outcome, self.now)
        self.check()

    @rule(name=names, why=st.sampled_from((Why.SLOW_START, Why.SLOW_TOKENS)))
    def is_slow(self, name: str, why: Why) -> None:
        self.found.suspect(Suspicion(name, why, 2.0, 1.0), self.now)
        self.check()

    @rule(name=names, volume=st.integers(0, 20), successes=st.integers(0, 20))
    def says(self, name: str, volume: int, successes: int) -> None:
        if name in self.found.hosts:
            self.found.hosts[name].hear(volume, successes)

    @rule(seconds=st.sampled_from((0.5, 5.0, INTERVAL_S, 29.0, 120.0)))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @precondition(lambda self: self.now - self.swept >= INTERVAL_S)
    @rule()
    def sweep(self) -> None:
        self.swept = self.now
        due = {
            name: state
            for name, (state, until, _) in self.before.items()
            if state is not State.IN and self.now >= until
        }
        assert self.found.sweep(self.now) == [name for name, state in due.items() if state is State.OUT]
        for name in due:
            if self.found.hosts[name].ejection.state is State.OUT:  # again, for what it has done since
                self.before[name] = (State.IN, 0.0, self.before[name][2])
        self.check()

    @rule(name=names, healthy=st.booleans())
    def is_checked(self, name: str, healthy: bool) -> None:
        self.found.set_health(name, healthy, self.now)
        self.check(may_end=True)

    @rule(members=st.sets(names, min_size=1))
    def members_change(self, members: set[str]) -> None:
        self.found.set_members(members)
        stayed = {name: self.found.hosts[name].ejection.state for name in self.before if name in members}
        ended = self.found.trim(self.now)
        assert all(stayed[name] is not State.IN for name in ended)
        self.before = {name: past for name, past in self.before.items() if name in members}
        self.check(may_end=True)

    @rule(name=names)
    def tries(self, name: str) -> None:
        host = self.found.hosts.get(name)
        if host is not None and (probe := host.ejection.try_one()):
            assert host.ejection.state is State.PROBATION
            assert not host.ejection.try_one()
            self.probes.setdefault(name, []).append(probe)

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), good=st.sampled_from((True, True, False, None)))
    def was_tried(self, data: st.DataObject, good: bool | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.probes)))
        probe = self.probes[name].pop(0)
        if not self.probes[name]:
            del self.probes[name]
        was_on = self.before.get(name, (State.IN,))[0] is State.PROBATION
        if not self.found.on_tried(name, probe, good, self.now):
            assert was_on
            assert good is False
        self.check(tried=name)

    @rule()
    def all_is_quiet_for_long(self) -> None:
        """Past the longest ejection one sweep ends it, past the longest probation the next."""
        for seconds in (self.most_s + JITTER_S, BASE_S):
            self.now += seconds
            for host in self.found.hosts.values():
                host.hear(0, 0)
            self.found.sweep(self.now)
        self.swept = self.now
        assert self.found.out == 0
        self.remember()

    @invariant()
    def no_more_are_out_than_may_be(self) -> None:
        hosts = self.found.hosts.values()
        out = [host for host in hosts if host.ejection.is_out]
        assert len(out) == self.found.out <= most_out(len(hosts), self.percent)
        assert all(host.healthy for host in out)

    @invariant()
    def who_is_out_gets_nothing_and_who_is_in_something(self) -> None:
        for host in self.found.hosts.values():
            share = host.ejection.share(self.now)
            assert (share == 0.0) == (host.ejection.state is State.OUT)
            assert share <= 1.0

    @invariant()
    def what_is_detected_is_ejected_or_not_enforced_or_too_much(self) -> None:
        assert sum(self.found.ejected.values()) + self.found.overflow <= sum(self.found.detected.values())


TestOutliers = Machine.TestCase
