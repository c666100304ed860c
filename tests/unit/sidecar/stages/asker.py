"""Requests for the stages, without a connection they could come from."""

from sidecar.balance.engine_page import EnginePage
from sidecar.config import decode
from sidecar.exchange import Exchange, Reply
from sidecar.flow.budget import Budget
from sidecar.http1.forwarded import Trust
from sidecar.http1.request import FIELDS, Request
from sidecar.lifecycle import Lifecycle
from sidecar.llm.models import Catalog
from sidecar.net.timers import Timers
from sidecar.pipeline import Pipeline, Ready, Stage
from sidecar.settings import Timeouts
from sidecar.stages.hop import Hop
from sidecar.stages.identify import Identify
from sidecar.telemetry.metrics import Metrics
from tests.harness.clock import FakeClock

CHAT = "/v1/chat/completions"
STEP_S = 0.125  # a tick is 0.05 s


class FakeClient:
    """Counts how often the body was asked for."""

    is_congested = False
    is_mesh = False

    def __init__(self, peer: str) -> None:
        self.peer = peer
        self.wanted = 0

    def want_body(self, x: Exchange) -> None:
        self.wanted += 1


class Asker:
    """Sends requests through some stages, and keeps what became of them."""

    def __init__(
        self, *stages: Stage, clock: FakeClock | None = None, timers: Timers | None = None
    ) -> None:
        self.clock = clock or FakeClock()
        self.timers = timers or Timers(self.clock.now)
        self.answers: dict[Exchange, Reply] = {}
        self.forwarded: list[Exchange] = []
        self._ready = Ready()
        self.pipeline = self.pipeline_of(*stages)

    def pipeline_of(self, *stages: Stage) -> Pipeline:
        """Another pipeline beside the first, as after a reload."""
        return Pipeline(
            stages,
            retry_at=len(stages),
            forward=self.forwarded.append,
            answer=self.answers.__setitem__,
            ready=self._ready,
        )

    def ask(
        self,
        *fields: str,
        method: str = "POST",
        target: str = CHAT,
        body: bytes = b"{}",
        length: int | None = -1,
        complete: bool = True,
        peer: str = "192.0.2.7",
        refused: Reply | None = None,
        pipeline: Pipeline | None = None,
        ago_s: float = 0.0,
    ) -> Exchange:
        """`length` is the body's own unless given (None: chunked); not `complete`: there is more to come.

        `ago_s`: it came so long ago, and waited behind another one on its connection.
        """
        lines = [field.encode("latin-1") for field in fields]
        start = f"{method} {target} HTTP/1.1".encode("latin-1")
        head = start, lines, *FIELDS.read(lines)
        request = Request(method.encode(), target.encode("latin-1"), "1.1", *head)
        request.length = len(body) if length == -1 else length
        arrived = self.clock.now() - ago_s
        x = Exchange(request, FakeClient(peer), pipeline or self.pipeline, Timeouts(), arrived)
        x.client_ip = peer
        x.refusal = refused
        send(x, body, complete=complete, tell=False)
        x.pipeline.start(x)
        return x

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP_S)):
            self.clock.advance(STEP_S)
            self.timers.advance()

    def responds(self, x: Exchange) -> None:
        """The head of the engine's answer comes, as `net` tells the stages."""
        x.responded = self.clock.now()
        assert x.pipeline.response(x)

    def reason(self, x: Exchange) -> str:
        """Why it was refused; empty when it was not."""
        return self.answers[x].refusal.reason if x in self.answers else ""


class Desk(Asker):
    """Identify, under `config`, with further stages behind it."""

    def __init__(self, config: str = "", *behind: Stage, engine: str = "") -> None:
        settings = decode(f"engine: {{address: '127.0.0.1:8000'{engine}}}\n{config}", {})
        self.lifecycle = Lifecycle()
        self.catalog = Catalog()
        self.bodies = Budget(settings.max_buffered_bytes)
        clock = FakeClock()
        timers = Timers(clock.now)
        trust = Trust(settings.trusted_proxies)
        self.queued = 0
        self.page = EnginePage(lambda: self.queued, settings.engine.metrics.max_age_s)
        self.metrics = Metrics("test", 10)
        self.hands_on = False
        self.hop = Hop("pod-1", clock, lambda: b"a heartbeat")
        stage = Identify(
            settings,
            clock,
            timers,
            self.catalog,
            trust,
            self.lifecycle,
            self.bodies,
            self.metrics,
            self.page,
            self.hop,
            lambda: self.hands_on,
        )
        super().__init__(stage, *behind, clock=clock, timers=timers)


def send(x: Exchange, data: bytes, *, complete: bool, tell: bool = True) -> None:
    """More of the body of `x` comes."""
    request = x.request
    if data:
        request.chunks.append(data)
        request.received += len(data)
    request.complete = complete
    if tell and x.when_body is not None:
        x.when_body(x)
