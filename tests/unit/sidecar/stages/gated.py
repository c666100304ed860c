"""A sidecar seen by callers and by its engine, for the stage that says who may run."""

import json
from hashlib import sha256

from prometheus_client.parser import text_string_to_metric_families as parse

from tests.harness.engine import ok
from tests.harness.wire import CHAT, Answer, Client, Wire, post

# Whoever asks may choose any class.
ANYBODY = "tenants: [{name: anonymous, class: premium}, {name: acme, class: premium, key_sha256: ['%s']}]"
ACME = "x-api-key: acme"
ACME_SHA256 = sha256(b"acme").hexdigest()


class Gated(Wire):
    """A sidecar that lets one request run at a time, unless `admission` says otherwise.

    A request is known by its `user`, which the engine sees.
    """

    def __init__(self, admission: str = "max_in_flight: 1", more: str = "", engine: str = "") -> None:
        self._more = f"{ANYBODY % ACME_SHA256}\n{more}\n"
        super().__init__(f"admission: {{{admission}}}\n{self._more}", keys=engine)

    def reload(self, admission: str) -> None:
        self.configure(f"admission: {{{admission}}}\n{self._more}")

    def ask(
        self, user: str, cls: str = "standard", *fields: str, client: Client | None = None, **members: object
    ) -> Client:
        body = json.dumps({"user": user, **members}).encode()
        return (client or self.client()) >> post(CHAT, body, f"x-priority: {cls}", *fields)

    @property
    def asked(self) -> list[str]:
        """Users whose request the engine has seen, those of its first connection first."""
        self.settle()
        return [json.loads(seen.body)["user"] for engine in self.engines for seen in engine.seen]

    def finish(self, answer: bytes = b"") -> None:
        """The engine answers the newest."""
        self.engine >> ok(answer)

    def knows(self, *, work: float, prompts: float = 1e6) -> None:
        """The engine's rates have been measured, in tokens a second."""
        self.gate.meter.work_rate = work
        self.gate.meter.prompt_rate = prompts

    @property
    def counts(self) -> tuple[int, int]:
        """In flight, queued."""
        return self.gate.in_flight, self.gate.queued

    def count(self, name: str, **labels: str) -> float:
        """Of a metric; 0 when nothing was counted."""
        return sum(
            sample.value
            for family in parse(self.metrics.render("")[0].decode())
            for sample in family.samples
            if sample.name == f"headgate_{name}" and sample.labels == labels
        )


def text(size: int) -> str:
    """So many bytes that are no image."""
    return ("word " * (size // 5 + 1))[:size]


def told(client: Client) -> Answer:
    return client.answer(b"POST")


def reason(client: Client) -> str:
    """Why it was refused; empty while it was not."""
    return told(client).reason if client.has_news else ""


def crowded(pod: Gated, *, cls: str = "standard") -> None:
    """One runs and two wait; a third would wait for more than 3 seconds."""
    pod.knows(work=1100)
    pod.ask("a", stream=True)
    for user in "bc":
        pod.ask(user, cls)
    assert pod.counts == (1, 2)


def invited(pod: Gated, user: str, *fields: str) -> float:
    """Refuses `user`, and says in how many seconds it is expected back."""
    answer = told(pod.ask(user, "standard", *fields))
    assert answer.reason == "overloaded"
    return int(answer[b"retry-after-ms"]) / 1000


def emptied(pod: Gated) -> None:
    """All who wait have been served."""
    while pod.gate.in_flight:
        pod.finish()
