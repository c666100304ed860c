"""Looks at a system from outside while a run goes on, ten times a second.

Pages of metrics cost the machine most, so those of pods that nobody breaks are asked for twice a second.

Who counts a pod's requests: Envoy, where it is before the engines or the trial is about sidecars; else the
pod's sidecar, which knows what it sent to its engine, whatever that says; else the engine itself. A process
that is dead or stopped counts nothing: then nobody knows.
Who says that a pod is ejected: Envoy, and each sidecar of itself and of its peers. Mesh-wide is what anybody
says.
"""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Final

import aiohttp

from mesh.bench.contenders import Running
from mesh.bench.engines import Watched, watched
from mesh.bench.faults.evidence import Count, Ejected, Seen
from mesh.bench.faults.evidence import Running as Runs
from mesh.local.plan import Layout

EVERY_S: Final = 0.1
_OTHERS_EVERY_S: Final = 0.5
_WITHIN_S: Final = 1.0
_STALE_S: Final = 2.0
_GATEWAY: Final = "gateway"

_SENT: Final = re.compile(rb'^headgate_attempts_total\{[^}]*\bto="engine"[^}]*\} (\S+)', re.MULTILINE)
_IN_FLIGHT: Final = re.compile(rb"^headgate_in_flight (\S+)", re.MULTILINE)

Document = Any  # JSON


def places(layout: Layout) -> dict[str, int]:
    """The numbers of pods by everything that they are called."""
    return {
        name: number
        for number, pod in enumerate(layout.pods)
        for name in (pod.name, f"{pod.engine}", f"{pod.sidecar}", f"sidecar-{pod.name}")
    }


def ejected_by_sidecar(page: Document, known: Mapping[str, int]) -> frozenset[int]:
    """Which pods /debug/endpoints of a sidecar says are ejected."""
    return frozenset(
        known[name]
        for each in _objects(page)
        if each.get("ejected") is True or each.get("state") == "ejected"
        for name in (each.get("pod"), each.get("name"), each.get("address"))
        if isinstance(name, str) and name in known
    )


def _objects(page: Document) -> Iterator[dict[str, Any]]:
    """Every object in it, whatever is around it."""
    if isinstance(page, dict):
        yield page
        page = list(page.values())
    if isinstance(page, list):
        for each in page:
            yield from _objects(each)


def sent_to_engine(page: bytes) -> float | None:
    """Requests that a sidecar has sent to its own engine, by its metrics; None: it does not count them."""
    ended = [float(value) for value in _SENT.findall(page)]
    running = [float(value) for value in _IN_FLIGHT.findall(page)]
    return sum(ended) + sum(running) if ended else None


def hosts(page: Document, known: Mapping[str, int]) -> Iterator[tuple[int, float, bool]]:
    """What /clusters of Envoy says of each pod: its number, requests so far, whether it is ejected."""
    for cluster in page["cluster_statuses"]:
        for host in cluster.get("host_statuses", ()):
            place = host["address"]["socket_address"]
            number = known.get(f"{place['address']}:{place['port_value']}")
            if number is not None:
                stats = {each["name"]: float(each.get("value", 0)) for each in host["stats"]}
                is_ejected = host["health_status"].get("failed_outlier_check", False)
                yield number, stats.get("rq_total", 0.0), is_ejected


class _Watch:
    def __init__(self, running: Running) -> None:
        self._known = places(running.layout)
        self._began = perf_counter()
        self._views: dict[str, frozenset[int]] = {}
        self.ejected: list[Ejected] = []
        self.at_gateway: list[list[Count]] = [[] for _ in running.layout.pods]
        self.at_sidecar: list[list[Count]] = [[] for _ in running.layout.pods]

    def gateway(self, body: bytes) -> None:
        found = list(hosts(json.loads(body), self._known))
        now = self._now()
        for number, requests, _ in found:
            self.at_gateway[number].append(Count(now, requests))
        self._see(_GATEWAY, frozenset(number for number, _, is_ejected in found if is_ejected))

    def endpoints(self, source: str, body: bytes) -> None:
        self._see(source, ejected_by_sidecar(json.loads(body), self._known))

    def metrics(self, number: int, body: bytes) -> None:
        if (sent := sent_to_engine(body)) is not None:
            self.at_sidecar[number].append(Count(self._now(), sent))

    def gone(self, source: str) -> None:
        """It says nothing of anybody."""
        self._see(source, frozenset())

    def _see(self, source: str, pods: frozenset[int]) -> None:
        self._views[source] = pods
        self.ejected.append(Ejected(self._now(), frozenset().union(*self._views.values())))

    def _now(self) -> float:
        return perf_counter() - self._began


@contextlib.asynccontextmanager
async def watching(
    running: Running, victims: Container[int], *, at_gateway: bool
) -> AsyncIterator[Callable[[], Seen]]:
    """Watch while the block runs; the start is now. Afterwards the answer says what was seen."""
    watch = _Watch(running)
    timeout = aiohttp.ClientTimeout(total=_WITHIN_S)
    async with (
        watched(running.engines) as engines,
        aiohttp.ClientSession(timeout=timeout) as session,
    ):
        tasks = [
            asyncio.ensure_future(_poll(session, page, partial(watch.gone, page.source)))
            for page in _pages(running, watch, victims)
        ]
        try:
            yield lambda: _seen(watch, engines, at_gateway=at_gateway)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _seen(watch: _Watch, engines: Watched, *, at_gateway: bool) -> Seen:
    running = [[Runs(each.at, each.running) for each in samples] for samples in engines.samples]
    counts = watch.at_gateway if at_gateway else watch.at_sidecar
    if not at_gateway and not any(counts):
        counts = [[Count(each.at, each.arrived) for each in samples] for samples in engines.samples]
    return Seen(_counted(counts), running, watch.ejected)


def _counted(counts: Sequence[list[Count]]) -> list[list[Count]]:
    """Without those that fell silent: what they were sent then, nobody counted."""
    end = max((each[-1].at for each in counts if each), default=0.0)
    return [each if each and each[-1].at > end - _STALE_S else [] for each in counts]


@dataclass(frozen=True, slots=True)
class _Page:
    """What to ask for, how often, and who reads it."""

    source: str
    url: str
    tell: Callable[[bytes], None]
    every_s: float = EVERY_S


def _pages(running: Running, watch: _Watch, victims: Container[int]) -> Iterator[_Page]:
    for number, url in enumerate(running.sidecar_admins):
        yield _Page(url, f"{url}/debug/endpoints", partial(watch.endpoints, url))
        every_s = EVERY_S if number in victims else _OTHERS_EVERY_S
        yield _Page(f"{url}/metrics", f"{url}/metrics", partial(watch.metrics, number), every_s)
    if running.envoy_admin:
        yield _Page(_GATEWAY, f"{running.envoy_admin}/clusters?format=json", watch.gateway)


async def _poll(session: aiohttp.ClientSession, page: _Page, gone: Callable[[], None]) -> None:
    while True:
        try:
            async with session.get(page.url) as answer:
                page.tell(await answer.read())
        except (aiohttp.ClientError, TimeoutError, ValueError):
            gone()
        await asyncio.sleep(page.every_s)
