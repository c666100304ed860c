"""An engine and some peers, and requests for the stage that chooses between them."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from sidecar.balance.endpoint import Endpoint
from sidecar.balance.fleet import Fleet, Peer
from sidecar.balance.heartbeat import Heartbeat
from sidecar.balance.progress import Progress
from sidecar.balance.retry import FirstTokens, RetryBudget
from sidecar.config import decode
from sidecar.errors import UPSTREAM_RESET
from sidecar.exchange import Exchange, Reply, Verdict
from sidecar.net.timers import Timers
from sidecar.pipeline import Pipeline, Stage
from sidecar.stages.judge import Judge
from sidecar.stages.pick import Pick
from sidecar.telemetry.metrics import Metrics
from tests.harness.clock import FakeClock
from tests.unit.sidecar.stages.asker import Asker

COST = 100.0
AT_ONCE = "retry: {base_ms: 1}"
HANGS = "engine: {address: '127.0.0.1:8000', health: {kind: none, progress_s: 5}}"


class Before(Stage):
    """What the stages above have found out."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def on_request(self, x: Exchange) -> Verdict:
        if x.attempt == 1:
            x.is_work, x.stream, x.cost = True, True, COST
            x.body = x.request.take_body()
            for name, value in self.found.items():
                setattr(x, name, value)
        return None


class Carrier:
    """What carries an exchange."""

    def __init__(self) -> None:
        self.abandoned = 0

    def abandon(self) -> None:
        self.abandoned += 1


class Rig(Asker):
    """The engine beside us, `peers` others, and their stage."""

    def __init__(self, config: str = AT_ONCE, peers: int = 2) -> None:
        text = config if config.startswith("engine:") else f"engine: {{address: '127.0.0.1:8000'}}\n{config}"
        settings = decode(f"{text}\noutlier: {{mode: 'off'}}", {})
        clock = FakeClock()
        timers = Timers(clock.now)
        self.before = Before()
        health = settings.engine.health
        self.progress = Progress(health.progress_s, health.first_use_s, clock.now())
        self.own = Endpoint("127.0.0.1", 8000)
        self.fleet = Fleet(self.own, lambda: 0.0, lambda x, now: self.progress.may_try(now))
        self.budget = RetryBudget(settings.retry.budget)
        self.first_tokens = FirstTokens()
        self.metrics = Metrics("test", 10)
        judge = Judge(settings.outlier, "pod-0", self.fleet, self.metrics, clock)
        parts = self.fleet, self.progress, self.budget, self.first_tokens, judge, self.metrics
        self.seconds: list[Exchange] = []
        self.let_go: list[Exchange] = []
        self.pick = Pick(
            settings,
            *parts,
            clock,
            timers,
            restart_at=1,
            send=self.seconds.append,
            let_go=self.let_go.append,
        )
        super().__init__(self.before, self.pick, clock=clock, timers=timers)
        self.peers: list[Peer] = []
        for n in range(1, peers + 1):
            one = self.fleet.hear(Heartbeat(f"pod-{n}", f"10.0.0.{n}:80", "serving"), clock.now())
            assert one is not None
            self.peers.append(one)

    def pipeline_of(self, *stages: Stage) -> Pipeline:
        return Pipeline(
            stages,
            retry_at=1,
            forward=self.forwarded.append,
            answer=self.answers.__setitem__,
            recover=self.pick.recover,
            ready=self._ready,
        )

    def ask_with(self, *, method: str = "POST", sent: bytes = b"{}", **found: Any) -> Exchange:
        """A request of which the stages above have found this out."""
        self.before.found = found
        x = self.ask(method=method, body=sent)
        x.upstream = Carrier()  # type: ignore[assignment]
        return x

    def fails(self, x: Exchange, how: Any = UPSTREAM_RESET) -> None:
        x.upstream = None
        x.pipeline.fail(x, Reply(how))

    def answers_with(self, x: Exchange, status: int, reason: bytes = b"") -> bool:
        """Its head has this status; whether `x` goes elsewhere for it."""
        x.refused_by = reason
        return x.pipeline.recovers(x, "status", status)

    def places(self, x: Exchange) -> tuple[Endpoint | None, int]:
        return x.endpoint, x.attempt

    @property
    def attempts(self) -> dict[tuple[str, str], float]:
        """By where they went and what became of them."""
        return {
            (sample.labels["to"], sample.labels["outcome"]): sample.value
            for family in parse(self.metrics.render("")[0].decode())
            for sample in family.samples
            if sample.name == "headgate_attempts_total"
        }

    def assert_at_rest(self) -> None:
        assert [place.in_flight for place in (self.own, *self.peers)] == [0] * (1 + len(self.peers))


def down(rig: Rig, how: str) -> None:
    """The engine beside us is, as this field of it says."""
    if how == "blocked":
        rig.own.block(rig.clock.now())
    else:
        setattr(rig.own, how, how != "healthy")
