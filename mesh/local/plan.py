"""What `headgate up` runs: which parts, on which ports, with which configuration. Nothing is started here.

Every part listens on loopback. Tiers give the order: the parts of a tier start together once the tiers below
are ready, and end together once the tiers above have ended.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import yaml

from mesh import gateway
from mesh.gateway import Address

HOST: Final = "127.0.0.1"
MESH: Final = "local"
ENVOY_FILE: Final = "envoy.yaml"
STORE, PODS, SIDECARS, GATEWAY = range(4)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line of `headgate up`."""

    pods: int = 2
    engine: str = "transformers"
    model: str | None = None
    port: int = 8000
    redis: str | None = None
    envoy: bool = True
    collector: Address | None = None
    faults: bool = False  # fake engines that can be told to fail


@dataclass(frozen=True, slots=True)
class Pod:
    """One model server and its sidecar."""

    name: str
    engine: Address
    engine_health: Address
    sidecar: Address
    sidecar_admin: Address
    sidecar_health: Address
    engine_faults: Address | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """Who listens where."""

    pods: tuple[Pod, ...]
    redis_url: str
    valkey: Address | None  # None: somebody else's Redis
    envoy: Address | None
    envoy_admin: Address | None

    @property
    def url(self) -> str:
        """Where callers go: the gateway, or without one the first sidecar."""
        return url(self.envoy or self.pods[0].sidecar)


@dataclass(frozen=True, slots=True)
class Part:
    """One process to keep running."""

    name: str
    tier: int
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)  # in addition to ours
    # How it says that it is ready: by a line of its output, or with 200 at a URL.
    ready_line: str | None = None
    ready_url: str | None = None
    start_within_s: float = 30.0
    end_within_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Binaries:
    """Programs that are not ours; None if the plan does without."""

    valkey: Path | None
    envoy: Path | None


def url(address: Address) -> str:
    return f"http://{address}"


def lay_out(options: Options, free_ports: Iterator[int]) -> Layout:
    """Give every listener its port. Callers find the mesh on `options.port`, with a gateway or without."""

    def free() -> Address:
        return Address(HOST, next(free_ports))

    public = Address(HOST, options.port)
    pods = tuple(
        Pod(
            name=f"pod-{number}",
            engine=free(),
            engine_health=free(),
            sidecar=public if number == 0 and not options.envoy else free(),
            sidecar_admin=free(),
            sidecar_health=free(),
            engine_faults=free() if options.faults else None,
        )
        for number in range(options.pods)
    )
    valkey = None if options.redis else free()
    return Layout(
        pods=pods,
        redis_url=options.redis or f"redis://{valkey}/0",
        valkey=valkey,
        envoy=public if options.envoy else None,
        envoy_admin=free() if options.envoy else None,
    )


def files(layout: Layout, options: Options) -> dict[str, str]:
    """Configuration files by name."""
    texts = {sidecar_file(pod): _sidecar_yaml(layout, pod) for pod in layout.pods}
    if layout.envoy and layout.envoy_admin:
        rendered = gateway.render(
            gateway.shipped(),
            listen=layout.envoy,
            admin=layout.envoy_admin,
            sidecars=[gateway.Sidecar(pod.sidecar, pod.sidecar_health.port) for pod in layout.pods],
            collector=options.collector,
        )
        texts[ENVOY_FILE] = gateway.dump(rendered)
    return texts


def parts(layout: Layout, options: Options, binaries: Binaries, folder: Path) -> list[Part]:
    """The processes, in the order in which they start."""
    planned = []
    if layout.valkey and binaries.valkey:
        planned.append(valkey_part(binaries.valkey, layout.valkey))
    planned += [pod_part(pod, _engine_words(options)) for pod in layout.pods]
    planned += [sidecar_part(pod, folder) for pod in layout.pods]
    if layout.envoy_admin and binaries.envoy:
        planned.append(envoy_part(binaries.envoy, layout.envoy_admin, folder))
    return planned


def _sidecar_yaml(layout: Layout, pod: Pod) -> str:
    config: dict[str, Any] = {
        "listen": str(pod.sidecar),
        "admin": str(pod.sidecar_admin),
        "health_listen": str(pod.sidecar_health),
        "drain_notice_s": 1,  # of Ctrl-C nobody needs to be told for longer
        "engine": {
            "address": str(pod.engine),
            "health": {"kind": "grpc", "address": str(pod.engine_health), "interval_s": 1},
        },
        **membership(layout, pod),
        # Envoy is the only one who may say who the caller was; without it, nobody may.
        "trusted_proxies": [f"{HOST}/32"] if layout.envoy else [],
    }
    return yaml.safe_dump(config, sort_keys=False)


def membership(layout: Layout, pod: Pod) -> dict[str, Any]:
    """The sections of a sidecar's configuration that make it one of this mesh."""
    return {
        "redis": {"url": layout.redis_url},
        "mesh": {"name": MESH, "pod": pod.name, "advertise": str(pod.sidecar)},
    }


def valkey_part(binary: Path, listen: Address) -> Part:
    """A Valkey that forgets everything when it ends."""
    # What limits remember is worth no disk: a blackboard, gone with the mesh.
    no_disk = ("--save", "", "--appendonly", "no")
    argv = (str(binary), "--bind", listen.host, "--port", str(listen.port), *no_disk)
    return Part("valkey", STORE, argv, ready_line="Ready to accept connections")


def _engine_words(options: Options) -> tuple[str, ...]:
    if options.model:
        return ("--engine", options.engine, "--model", options.model)
    return ("--engine", options.engine, *(["--tiny"] if options.engine == "transformers" else []))


def sidecar_file(pod: Pod) -> str:
    """The name of its sidecar's configuration file."""
    return f"sidecar-{pod.name}.yaml"


def pod_part(pod: Pod, words: Sequence[str]) -> Part:
    """The model server of `pod`; `words` of its command line say what generates."""
    listeners: tuple[str, ...] = ("--listen", str(pod.engine), "--health-listen", str(pod.engine_health))
    if pod.engine_faults is not None:
        listeners += ("--faults", str(pod.engine_faults))
    argv = (sys.executable, "-m", "model_pod", *words, *listeners, "--threads", "1")
    # `--threads` is torch's; OpenMP's own pool would still take every core for itself.
    env = {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    # Minutes: a real model is read from disk, the tiny one is built at its first start.
    return Part(pod.name, PODS, argv, env, ready_line="ready http://", start_within_s=600)


def sidecar_part(pod: Pod, folder: Path) -> Part:
    """The sidecar of `pod`, whose file is in `folder`."""
    argv = (sys.executable, "-m", "sidecar", "--config", str(folder / sidecar_file(pod)))
    ready = f"{url(pod.sidecar_admin)}/ready"
    # It drains: a stream that runs at Ctrl-C has this long to end.
    env = {"PYTHONUNBUFFERED": "1"}
    return Part(f"sidecar-{pod.name}", SIDECARS, argv, env, ready_url=ready, end_within_s=10)


def envoy_part(binary: Path, admin: Address, folder: Path) -> Part:
    """Envoy with `ENVOY_FILE` in `folder`."""
    argv = (
        str(binary),
        *("-c", str(folder / ENVOY_FILE)),
        # Shares memory under a number that two meshes on one machine would both take.
        "--disable-hot-restart",
        *("--concurrency", "1"),
        *("--log-level", "warning"),
    )
    return Part("envoy", GATEWAY, argv, ready_url=f"{url(admin)}/ready")


def summary(layout: Layout, pids: Mapping[str, int]) -> dict[str, Any]:
    """What `--json` prints: where everything is."""
    envoy = layout.envoy and layout.envoy_admin and {
        "url": url(layout.envoy),
        "admin": url(layout.envoy_admin),
        "pid": pids["envoy"],
    }
    return {
        "url": layout.url,
        "envoy": envoy,
        "redis": {"url": without_password(layout.redis_url), "pid": pids.get("valkey")},
        "pods": [
            {
                "name": pod.name,
                "url": url(pod.engine),
                "health": str(pod.engine_health),
                "pid": pids[pod.name],
                "sidecar": {
                    "url": url(pod.sidecar),
                    "admin": url(pod.sidecar_admin),
                    "health": str(pod.sidecar_health),
                    "pid": pids[f"sidecar-{pod.name}"],
                },
            }
            for pod in layout.pods
        ],
    }


def report(layout: Layout, pids: Mapping[str, int], model: str, folder: Path) -> str:
    """What a person reads: what runs where, and what to do next."""
    rows = [("gateway", "envoy", url(layout.envoy))] if layout.envoy else []
    for pod in layout.pods:
        rows.append((f"{pod.name} sidecar", f"sidecar-{pod.name}", url(pod.sidecar)))
        rows.append((f"{pod.name} model", pod.name, url(pod.engine)))
    rows.append(("redis", "valkey", without_password(layout.redis_url)))
    lines = [
        f"  {what:<15} {where:<30} " + (f"pid {pids[part]}" if part in pids else "not ours")
        for what, part, where in rows
    ]
    table = "\n".join(lines)
    return f"\n{table}\n  {'logs':<15} {folder}\n\n{curl(layout.url, model)}\n\nCtrl-C ends everything."


def curl(base_url: str, model: str) -> str:
    """A request to paste into a shell."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    return (
        f"curl -N {base_url}/v1/chat/completions -H 'content-type: application/json' \\\n"
        f"  -d '{json.dumps(body)}'"
    )


def collector(env: Mapping[str, str]) -> Address | None:
    """The OTLP collector that the standard variables name, if Envoy can reach it: plain HTTP and a port."""
    endpoint = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or env.get("OTEL_EXPORTER_OTLP_ENDPOINT")
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme != "http" or not parts.hostname:
        return None
    return Address(parts.hostname, parts.port or 4318)


def without_password(redis_url: str) -> str:
    """The URL as it may be shown."""
    parts = urlsplit(redis_url)
    if parts.password is None:
        return redis_url
    place = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{place}"))


def tiers(planned: Sequence[Part]) -> list[list[Part]]:
    """The parts by tier, lowest first."""
    numbers = sorted({part.tier for part in planned})
    return [[part for part in planned if part.tier == number] for number in numbers]
