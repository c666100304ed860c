"""The systems that `headgate bench` compares, each started on free loopback ports and ended.

All serve the same fake engines. An answer's length follows from its ask's number, so the same ask costs an
engine the same whoever lets it through, and whichever of its tries is served.
"""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import yaml

from mesh import gateway
from mesh.bench import envoys
from mesh.bench.workload import BATCH, PREMIUM, STANDARD, Ask, Traffic
from mesh.gateway import Address, Document
from mesh.local import machine, plan
from mesh.local.plan import HOST, Layout, Options, Part, Pod
from mesh.local.supervisor import PartFailed, Supervisor

MODEL: Final = "fake"
# vLLM's scheme: the lowest runs first.
PRIORITIES: Final = {PREMIUM: 0, STANDARD: 1, BATCH: 2}
_LAST_LINES: Final = 5


class Broken(Exception):
    """A part of a system did not start, or died: what was measured means nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One way to guard engines."""

    name: str
    says: str  # what it is, for the report
    engine: tuple[str, ...] = ()  # flags of each engine
    admission: Mapping[str, Any] | None = None  # a sidecar at each engine with this section; None: none
    envoy: envoys.Builder | None = None  # before bare engines
    direct: bool = False  # callers also ask each sidecar, beside the gateway
    gateway: bool = True  # an Envoy before the sidecars; without it callers ask each sidecar
    by_priority: bool = False  # requests carry their class as the engine's `priority`


ALL: Final = {
    each.name: each
    for each in (
        Contender(name="headgate", says="Envoy and a sidecar at each engine", admission={}),
        Contender(
            name="headgate-direct", says="the same, callers also ask each sidecar", admission={}, direct=True
        ),
        Contender(name="headgate-off", says="the same, admission off", admission={"mode": "off"}),
        Contender(
            name="envoy-adaptive", says="Envoy with adaptive concurrency", envoy=envoys.adaptive
        ),
        Contender(
            name="envoy-admission",
            says="Envoy with admission control, engines that queue 16",
            envoy=envoys.admission,
            engine=("--max-waiting", "16"),
        ),
        Contender(
            name="fifo", says=f"Envoy as a queue, {envoys.FIFO_CONNECTIONS} to each engine", envoy=envoys.fifo
        ),
        *(
            Contender(
                name=f"engine-{seats}",
                says=f"no gateway, the engine's own priority queue, {seats} sequences",
                engine=("--priority-scheduling", "--max-running", str(seats)),
                by_priority=True,
            )
            for seats in (256, 64)
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A system that serves."""

    targets: list[str]  # where callers ask, in turn
    model: str
    extra_body: Callable[[Ask], dict[str, Any]]
    pids: dict[str, int]  # of each part
    engines: list[str]  # their URLs
    sidecar_admins: list[str]
    envoy_admin: str | None
    check: Callable[[], None]  # raises Broken when a part has died since that nobody here ended
    layout: Layout
    parts: "Parts"


class Parts:
    """The processes of a running system, for who wants to see what happens without one of them."""

    def __init__(self, supervisor: Supervisor, watcher: "_Watcher") -> None:
        self._supervisor = supervisor
        self._watcher = watcher

    def kill(self, name: str) -> None:
        """SIGKILL, and it stays dead."""
        self._supervisor.lose(name)

    def stop(self, name: str) -> None:
        """SIGSTOP: it is there and does nothing."""
        os.kill(self._supervisor.pids()[name], signal.SIGSTOP)

    async def restart(self, name: str) -> None:
        """SIGTERM; it takes its time to end, and is ready again when this returns."""
        watcher = self._watcher
        lives = watcher.lives[name]
        watcher.restarting.add(name)
        os.kill(self._supervisor.pids()[name], signal.SIGTERM)
        while watcher.lives[name] == lives:
            watcher.news.clear()
            await watcher.news.wait()
        watcher.restarting.discard(name)


@contextlib.asynccontextmanager
async def started(
    contender: Contender,
    *,
    pods: int,
    traffic: Iterable[Traffic],
    engine: Sequence[str] = (),
    seed: int = 0,
    faults: bool = False,
) -> AsyncIterator[Running]:
    """Serve with `pods` engines whose further flags are `engine`; `traffic` names the tenants.

    With `faults` the engines can be told to fail.
    """
    ports = iter(machine.free_ports(HOST, pods * 6 + 3))
    layout = plan.lay_out(Options(pods=pods, port=next(ports), faults=faults), ports)
    words = ("--engine", MODEL, "--seed", str(seed), "--log-level", "error", *engine, *contender.engine)
    with machine.private_folder() as folder:
        planned = list(parts(contender, layout, words, folder, tenants_of(traffic)))
        watcher = _Watcher()
        async with Supervisor(planned, watcher) as supervisor:
            try:
                await supervisor.start()
                yield _running(contender, layout, supervisor, watcher)
            except PartFailed as failure:
                last = "\n".join(failure.last_lines[-_LAST_LINES:])
                raise Broken(f"{contender.name}: {failure}\n{last}") from None
            finally:
                supervisor.hurry()  # nobody is left to drain for


def _running(
    contender: Contender, layout: Layout, supervisor: Supervisor, watcher: "_Watcher"
) -> Running:
    has_sidecars = contender.admission is not None
    pids = supervisor.pids()
    return Running(
        targets=[plan.url(address) for address in _front(contender, layout)],
        model=MODEL,
        extra_body=extra_body(contender),
        pids=pids,
        engines=[plan.url(pod.engine) for pod in layout.pods],
        sidecar_admins=[plan.url(pod.sidecar_admin) for pod in layout.pods] if has_sidecars else [],
        envoy_admin=plan.url(layout.envoy_admin) if "envoy" in pids and layout.envoy_admin else None,
        check=watcher.check,
        layout=layout,
        parts=Parts(supervisor, watcher),
    )


def _front(contender: Contender, layout: Layout) -> list[Address]:
    """Where callers ask, in turn."""
    if contender.admission is None and contender.envoy is None:
        return [pod.engine for pod in layout.pods]
    sidecars = [pod.sidecar for pod in layout.pods]
    if not contender.gateway:
        return sidecars
    assert layout.envoy is not None
    return [layout.envoy, *(sidecars if contender.direct else ())]


def extra_body(contender: Contender) -> Callable[[Ask], dict[str, Any]]:
    """What each request says beside the usual."""

    def seeded(ask: Ask) -> dict[str, Any]:
        return {"seed": ask.number}

    def with_priority(ask: Ask) -> dict[str, Any]:
        return seeded(ask) | {"priority": PRIORITIES[ask.traffic.cls]}

    return with_priority if contender.by_priority else seeded


def parts(
    contender: Contender, layout: Layout, words: Sequence[str], folder: Path, tenants: list[Document]
) -> Iterator[Part]:
    """The processes of this system; their files are written to `folder`."""
    assert layout.envoy is not None
    assert layout.envoy_admin is not None
    # Sidecars of several pods know whom the others refused.
    is_mesh = contender.admission is not None and len(layout.pods) > 1
    if is_mesh and layout.valkey:
        yield plan.valkey_part(machine.find_valkey(), layout.valkey)
    for pod in layout.pods:
        yield plan.pod_part(pod, words)
    document = None
    if contender.admission is not None:
        for pod in layout.pods:
            settings = sidecar_settings(pod, contender.admission, tenants)
            text = yaml.safe_dump(settings | (plan.membership(layout, pod) if is_mesh else {}))
            (folder / plan.sidecar_file(pod)).write_text(text, "utf-8")
            yield plan.sidecar_part(pod, folder)
        sidecars = [gateway.Sidecar(pod.sidecar, pod.sidecar_health.port) for pod in layout.pods]
        if contender.gateway:
            document = gateway.render(
                gateway.shipped(), listen=layout.envoy, admin=layout.envoy_admin, sidecars=sidecars
            )
    elif contender.envoy is not None:
        document = contender.envoy(layout.envoy, layout.envoy_admin, [pod.engine for pod in layout.pods])
    if document is not None:
        (folder / plan.ENVOY_FILE).write_text(gateway.dump(document), "utf-8")
        yield plan.envoy_part(machine.find_envoy(), layout.envoy_admin, folder)


def sidecar_settings(pod: Pod, admission: Mapping[str, Any], tenants: Sequence[Document]) -> Document:
    """A sidecar's configuration: all defaults, but for who asks."""
    return {
        "listen": str(pod.sidecar),
        "admin": str(pod.sidecar_admin),
        "health_listen": str(pod.sidecar_health),
        "engine": {
            "address": str(pod.engine),
            "health": {"kind": "grpc", "address": str(pod.engine_health), "interval_s": 1},
        },
        "trusted_proxies": [f"{HOST}/32"],
        "tenants": list(tenants),
        "admission": dict(admission),
        # Every line would be read by the process that makes the load.
        "telemetry": {"access_log": "off", "receipts": 5000},
    }


def tenants_of(traffic: Iterable[Traffic]) -> list[Document]:
    """Who asks, as a sidecar's configuration lists them."""
    classes: dict[tuple[str, str], str] = {}
    for each in traffic:
        if classes.setdefault((each.tenant, each.key), each.cls) != each.cls:
            raise ValueError(f"tenant {each.tenant} has callers of two classes")
    return [
        {"name": tenant, "class": cls, "key_sha256": [sha256(key.encode()).hexdigest()]}
        for (tenant, key), cls in classes.items()
    ]


@dataclass(slots=True)
class _Watcher:
    """The Audience of a Supervisor: remembers who died."""

    deaths: list[str] = field(default_factory=list)
    restarting: set[str] = field(default_factory=set)  # whose next death is wanted
    lives: Counter[str] = field(default_factory=Counter)  # how often each was ready
    news: asyncio.Event = field(default_factory=asyncio.Event)
    last: dict[str, str] = field(default_factory=dict)  # line of each part

    def starting(self, part: Part) -> None:
        pass

    def ready(self, part: Part, took_s: float) -> None:
        self.lives[part.name] += 1
        self.news.set()

    def died(self, part: Part, how: str, again_in_s: float) -> None:
        if part.name not in self.restarting:
            self.deaths.append(f"{part.name} {how}: {self.last.get(part.name, 'said nothing')}")

    def line(self, part: Part, text: str) -> None:
        self.last[part.name] = text

    def check(self) -> None:
        if self.deaths:
            raise Broken("; ".join(self.deaths[:_LAST_LINES]))
