"""What is compared, and how it is started: each on one core, between the same engine and the same callers.

    sidecar   with every stage there is
    envoy+    envoy/sidecar-baseline.yaml: Envoy doing what the sidecar does. The yardstick
    envoy     one worker that only routes
    nginx, haproxy    with what they need to keep their connections; when they are installed

Whatever they log goes to /dev/null. What cannot be found on this machine is left out.
"""

import asyncio
import contextlib
import os
import shutil
import string
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from mesh import gateway
from mesh.gateway import Address
from mesh.local.machine import MissingBinary, find_envoy, free_ports
from tests.bench.hot_path import CONFIG
from tests.bench.machine import MEASURED, Broken, follow
from tests.bench.peers import HOST

SIDECAR: Final = "sidecar"
BASELINE: Final = "envoy+"
ENVOY: Final = "envoy"
NGINX: Final = "nginx"
HAPROXY: Final = "haproxy"
DIRECT: Final = "direct"
_CONFIGS: Final = Path(__file__).with_name("configs")
_ONE_WORKER: Final = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "error")

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Proxy:
    """Where callers are sent, and the processes that are measured."""

    name: str
    port: int
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Place:
    """The ports of what a proxy stands between, and a folder for its files."""

    engine: int
    collector: int
    folder: Path


@dataclass(frozen=True, slots=True)
class Site:
    """A place of one proxy: ports and a folder of its own."""

    place: Place
    port: int
    admin: int
    folder: Path

    def write(self, name: str, text: str) -> str:
        file = self.folder / name
        file.write_text(text)
        return str(file)

    def fill(self, name: str) -> str:
        """A file of `configs`, with its ports and folder filled in."""
        template = string.Template((_CONFIGS / name).read_text())
        values = {"port": self.port, "engine": self.place.engine, "folder": self.folder}
        return self.write(name, template.substitute(values))


@dataclass(frozen=True, slots=True)
class Command:
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)


def installed() -> list[str]:
    """What this machine can run, in the order of the tables."""
    programs = {SIDECAR: sys.executable, NGINX: shutil.which("nginx"), HAPROXY: shutil.which("haproxy")}
    with contextlib.suppress(MissingBinary):
        programs |= dict.fromkeys((BASELINE, ENVOY), str(find_envoy()))
    return [name for name in COMMANDS if programs.get(name)]


@contextlib.asynccontextmanager
async def standing(names: Iterable[str], place: Place) -> AsyncIterator[dict[str, Proxy]]:
    """These proxies, each serving. `direct` is the engine itself."""
    with contextlib.ExitStack() as stack:
        found: dict[str, Proxy] = {}
        for name in names:
            if name == DIRECT:
                found[name] = Proxy(name, place.engine)
                continue
            site = _site(place)
            pid = stack.enter_context(_process(COMMANDS[name](site), site.folder / "log"))
            await _serving(site.port, site.folder / "log")
            found[name] = Proxy(name, site.port, (pid,))
        yield found


@contextlib.asynccontextmanager
async def gateway_and_sidecar(place: Place) -> AsyncIterator[list[Proxy]]:
    """The shipped gateway in front of one sidecar: the path as a whole, then each part of it."""
    front, back = _site(place), _site(place)
    (health,) = free_ports(HOST, 1)
    document = gateway.render(
        gateway.shipped(),
        listen=Address(HOST, front.port),
        admin=Address(HOST, front.admin),
        sidecars=[gateway.Sidecar(Address(HOST, back.port), health)],
        collector=Address(HOST, place.collector),
    )
    with contextlib.ExitStack() as stack:
        sidecar = _sidecar(back, health_listen=f"{HOST}:{health}")
        second = stack.enter_context(_process(sidecar, back.folder / "log"))
        await _serving(back.port, back.folder / "log")
        first = stack.enter_context(_process(_envoy(front, document), front.folder / "log"))
        await _serving(front.port, front.folder / "log")
        yield [
            Proxy("gateway + sidecar", front.port, (first, second)),
            Proxy("gateway", front.port, (first,)),
            Proxy(SIDECAR, front.port, (second,)),
        ]


def _site(place: Place) -> Site:
    port, admin = free_ports(HOST, 2)
    return Site(place, port, admin, Path(tempfile.mkdtemp(dir=place.folder)))


@contextlib.contextmanager
def _process(command: Command, log: Path) -> Iterator[int]:
    """A child on the measured core; killed with the block."""
    with log.open("wb") as errors:
        started = subprocess.Popen(
            command.argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=os.environ | command.env,
            preexec_fn=follow(MEASURED),  # safe: we have one thread
        )
    try:
        yield started.pid
    finally:
        started.kill()
        started.wait()


async def _serving(port: int, log: Path) -> None:
    """Until a request gets through to the engine."""
    said = b"nothing"
    for _ in range(200):
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(b"GET / HTTP/1.1\r\nhost: model.example\r\n\r\n")
                said = await reader.readline()
                writer.transport.abort()
        if said.startswith(b"HTTP/1.1 200"):
            return
        await asyncio.sleep(0.05)
    raise Broken(f"port {port} answers {said!r}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


def _sidecar(site: Site, **sections: Any) -> Command:
    settings = yaml.safe_load(CONFIG) | {
        "listen": f"{HOST}:{site.port}",
        "admin": f"{HOST}:{site.admin}",
        # Admission counts everything and holds up nobody: all run at once, as with the others.
        "engine": {"address": f"{HOST}:{site.place.engine}", "kv_tokens": 1_000_000_000},
        "admission": {"max_in_flight": 20_000},
        "classes": {"premium": {"max_wait_s": 600}, "standard": {"max_wait_s": 600}},
        **sections,
    }
    file = site.write("sidecar.yaml", yaml.safe_dump(settings))
    tracing = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{site.place.collector}",
        "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }
    return Command([sys.executable, "-m", "sidecar", "--config", file], tracing)


def _envoy(site: Site, document: Document) -> Command:
    file = site.write("envoy.yaml", gateway.dump(document))
    return Command([str(find_envoy()), "-c", file, *_ONE_WORKER])


def baseline(port: int, admin: int, engine: int, collector: int) -> Document:
    """envoy/sidecar-baseline.yaml with its placeholders replaced."""
    text = (gateway.shipped_folder() / "sidecar-baseline.yaml").read_text("utf-8")
    document: Document = yaml.safe_load(text)
    static = document["static_resources"]
    _move(document["admin"], admin)
    _move(static["listeners"][0], port)
    for cluster, to in zip(static["clusters"], (engine, collector), strict=True):
        _move(cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"], to)
    return document


def _move(section: Document, port: int) -> None:
    section["address"]["socket_address"] = {"address": HOST, "port_value": port}


def _baseline(site: Site) -> Command:
    return _envoy(site, baseline(site.port, site.admin, site.place.engine, site.place.collector))


def _bare(site: Site) -> Command:
    return Command([str(find_envoy()), "-c", site.fill("envoy.yaml"), *_ONE_WORKER])


def _nginx(site: Site) -> Command:
    return Command(["nginx", "-p", str(site.folder), "-e", "stderr", "-c", site.fill("nginx.conf")])


def _haproxy(site: Site) -> Command:
    return Command(["haproxy", "-db", "-f", site.fill("haproxy.cfg")])


COMMANDS: Final[dict[str, Callable[[Site], Command]]] = {
    SIDECAR: _sidecar,
    BASELINE: _baseline,
    ENVOY: _bare,
    NGINX: _nginx,
    HAPROXY: _haproxy,
}
