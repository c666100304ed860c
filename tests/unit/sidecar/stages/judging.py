"""A pod whose engine is judged, its peers, and the mesh's blackboard as far as it grants tickets."""

from typing import Final

from sidecar.balance.blackboard import EXISTS, GRANTED, Ejected, View
from sidecar.balance.heartbeat import Heartbeat
from sidecar.balance.outlier import Host
from sidecar.config import decode
from sidecar.stages.judge import Judge
from tests.harness.engine import Engine, answer, chunked, ok
from tests.harness.wire import CHAT, Client, Wire, post

OWN: Final = "127.0.0.1:8000"
NEVER_TWICE: Final = "retry: {mode: 'off'}"
STREAM: Final = b'{"stream": true}'
TOKEN: Final = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
# Each request gets a connection of its own, so that the newest one is that of the newest request.
CLOSE: Final = b"connection: close"
FINE: Final = ok(b"fine", CLOSE)
NO: Final = answer(b"500 No", b"no", b"content-length: 2", CLOSE)
EVENTS: Final = answer(
    b"200 OK", b"", b"content-type: text/event-stream", b"transfer-encoding: chunked", CLOSE
)


class Board:
    """Gives each new vote `word`. Tickets: until when, for what, by whom."""

    def __init__(self, pod: "Judged") -> None:
        self.word = GRANTED
        self.here = True
        self.settled = True
        self.tickets: dict[str, tuple[float, str, tuple[str, ...]]] = {}
        self.asked: list[str] = []  # for whom votes came, in their order
        self._pod = pod

    def view(self, *words: tuple[str, str]) -> View:
        now = self._pod.clock.now()
        self.tickets = {pod: ticket for pod, ticket in self.tickets.items() if ticket[0] > now}
        return View(
            at_ms=int(now * 1000),
            settled=self.settled,
            full=False,
            members=(),
            ejected=self.ejected,
            suspects=(),
            votes=words,
            held=(),
            origins=0.0,
            retries=0.0,
            secret="",
        )

    @property
    def ejected(self) -> tuple[Ejected, ...]:
        now = self._pod.clock.now()
        return tuple(
            Ejected(pod, int(1000 * (until - now)), why, voters, "")
            for pod, (until, why, voters) in self.tickets.items()
        )

    def ejects(self, pod: str, seconds: float, *voters: str) -> None:
        self.tickets[pod] = self._pod.clock.now() + seconds, "consecutive_5xx", voters or (pod,)

    def call(self) -> None:
        """One post of ours, and its answer."""
        judge, now, words = self._pod.judge, self._pod.clock.now(), []
        for pod in judge.uneject():
            self.tickets.pop(pod, None)
        for vote in judge.votes():
            self.asked.append(vote.pod)
            ends = now + vote.ms / 1000
            if vote.pod in self.tickets:
                words.append((vote.pod, EXISTS))
                until, why, voters = self.tickets[vote.pod]
                if vote.alone:
                    self.tickets[vote.pod] = max(until, ends), why, voters
            else:
                words.append((vote.pod, self.word))
                if self.word == GRANTED:
                    self.tickets[vote.pod] = ends, vote.reason, ("pod-0",)
        judge.take(self.view(*words))


class Judged(Wire):
    """`chance` is what is drawn, from 0 to below 1."""

    def __init__(
        self, outlier: str = "", *, peers: int = 2, retry: str = NEVER_TWICE, name: str = "pod-0"
    ) -> None:
        self._name = name
        self._more = f"mesh: {{pod: {name}, peers: ['10.0.0.1:80'], secret_file: unread}}\n" + retry
        super().__init__(f"{self._more}\noutlier: {{{outlier}}}")
        self.chance = 0.0
        self.clock.jitter = self._jitter  # type: ignore[method-assign]
        self.plane.hop.keys = (b"first-key-of-the-mesh",)
        self.lifecycle.serving = True
        self.board = Board(self)
        self.judge.asks = lambda: self.board.here
        for n in range(1, peers + 1):
            self.hears(n)
        self.pass_time(1.0)

    def _jitter(self, value: float, share: float) -> float:
        return value * (1 + share * self.chance)

    @property
    def judge(self) -> Judge:
        return self.plane.judge

    @property
    def host(self) -> Host:
        return self.judge.outliers.hosts[self._name]

    @property
    def is_out(self) -> bool:
        return self.plane.fleet.own.ejected

    def reload(self, outlier: str) -> None:
        self.configure(f"{self._more}\noutlier: {{{outlier}}}")

    def engine_is(self, address: str) -> None:
        """A reload that changes the engine alone."""
        text = f"engine: {{address: '{address}'}}\n{self._more}"
        self.plane.put_in_force(decode(text, {}))
        self.settle()

    def hears(self, n: int, state: str = "serving", **more: object) -> None:
        """Pod n says so now."""
        heartbeat = Heartbeat(f"pod-{n}", f"10.0.0.{n}:80", state, **more)  # type: ignore[arg-type]
        if self.plane.fleet.hear(heartbeat, self.clock.now()) is not None:
            self.judge.hear(heartbeat, self.clock.now())

    def pass_time(self, seconds: float) -> None:
        """With a call of the blackboard each second, while it is there."""
        while seconds > 0:
            step = min(seconds, 1.0)
            self.advance(step)
            self.lifecycle.beat = self.clock.now()
            if self.board.here:
                self.board.call()
            seconds -= step

    def at(self, name: str) -> Engine:
        """The newest connection there."""
        return next(engine for engine in reversed(self.engines) if engine.endpoint.name == name)

    def goes(self) -> str:
        """Where the next request goes to; it is answered well."""
        client = self.ask()
        self.engine >> FINE
        assert client.answer(b"POST").status == 200
        return "engine" if self.engine.endpoint.name == OWN else "peer"

    def ask(self, body: bytes = b"{}", *fields: str) -> Client:
        return self.client() >> post(CHAT, body, *fields)

    def fails(self, times: int = 5, body: bytes = NO) -> None:
        """The engine answers so many requests with 500."""
        for _ in range(times):
            client = self.ask()
            self.engine >> body
            assert client.answer(b"POST").status == 500

    def ejected(self) -> None:
        """It is, from now on."""
        self.fails()
        self.board.call()
        assert self.is_out

    def on_probation(self) -> None:
        self.ejected()
        self.pass_time(31.0)

    def first_tokens(self, seconds: float, requests: int = 3) -> None:
        """Streams whose first token takes so long."""
        began = [self.ask(STREAM) for _ in range(requests)]
        engines = self.engines[-requests:]
        self.advance(seconds)
        for engine in engines:
            engine >> EVENTS + chunked(TOKEN)
        assert all(client.answer(b"POST").complete for client in began)
