"""What can be configured: one frozen struct per section, each key with its safe default and meaning.

The descriptions are the comments: `headgate config schema` publishes the same text. Reading a file
into these structs is `sidecar.config`. Rules between the keys of one struct stand in its
`__post_init__`, which raises ConfigError with a path relative to the struct.
"""

import ipaddress
import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct, field

from sidecar.deny_paths import DENY_PATHS
from sidecar.errors import ConfigError
from sidecar.faults import Health, Outlier, Retry, SecondsOrNone
from sidecar.values import (
    MIB,
    MONTH,
    Address,
    Amount,
    Bytes,
    ClassName,
    Count,
    CountOrNone,
    KeyHash,
    Milliseconds,
    Name,
    Seconds,
    Share,
    Text,
    UrlPath,
    doc,
)

LogLevel = Literal["debug", "info", "warning", "error"]
_DIMENSIONS: Final = ("tenant", "key", "model", "client_ip")
_HEADER: Final = re.compile(r"header:[!#$%&'*+.^_`|~0-9a-z-]+")


class EngineMetrics(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the sidecar learns what the engine says of its load, and who sees it."""

    kind: Annotated[
        Literal["auto", "none"], doc("auto: a Prometheus page of vLLM, SGLang or TGI; none: it is not asked")
    ] = "auto"
    address: Annotated[Address | None, doc("where to ask; absent: engine.address")] = None
    path: Annotated[UrlPath, doc("of the page")] = "/metrics"
    interval_s: Annotated[
        Seconds, doc("between two looks at it; what is older than three of them counts no more")
    ] = 1.0
    reexport: Annotated[
        bool, doc("answer a GET of `path` with the page that was seen last, our queue among those who wait")
    ] = True

    @property
    def max_age_s(self) -> float:
        """How long what a page says is believed."""
        return 3 * self.interval_s


class Engine(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model server beside this sidecar."""

    address: Annotated[Address, doc("where the engine listens")]
    health: Annotated[Health, doc("health checks")] = Health()
    metrics: Annotated[EngineMetrics, doc("what the engine says of its load")] = EngineMetrics()
    include_usage: Annotated[
        Literal["auto", "off"],
        doc("auto: ask for usage on streams that accounting needs, and withhold that event from the caller"),
    ] = "auto"
    deny_paths: Annotated[tuple[UrlPath, ...], doc("403 from outside, each with all below it")] = DENY_PATHS
    kv_tokens: Annotated[
        Count | None, doc("tokens the KV cache holds; absent: the engine is asked, else 120000 or what fits")
    ] = None
    priority: Annotated[
        Literal["off", "on"],
        doc("on: the engine is told each request's class in `priority`, as vLLM reads it: 0 is highest"),
    ] = "off"
    # Envoy's names; what admission bounds anyway is as much as that, unless it is less here.
    max_connections: Annotated[
        Count | None, doc("open connections to the engine; absent: no more than requests")
    ] = None
    max_pending_requests: Annotated[
        Count | None, doc("requests that wait for the engine; absent: admission.max_queue")
    ] = None
    max_requests: Annotated[
        Count | None, doc("requests at the engine at once, of any kind; absent: max_connections")
    ] = None
    max_retries: Annotated[Count, doc("requests that are tried again at once")] = 32

    @property
    def health_address(self) -> Address:
        """Where health is asked."""
        return self.health.address or self.address

    @property
    def metrics_address(self) -> Address:
        """Where its metrics are."""
        return self.metrics.address or self.address


class Redis(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The blackboard of the mesh; without it limits, and who was refused, are local to this sidecar."""

    url: Annotated[Text | None, doc("redis://, rediss:// or unix://; may hold a password")] = None
    url_file: Annotated[Text | None, doc("file that holds the URL, for mounted secrets")] = None
    timeout_ms: Annotated[Milliseconds, doc("for one call; after it the store counts as down")] = 20.0

    def __post_init__(self) -> None:
        if (self.url is None) == (self.url_file is None):
            raise ConfigError("", "give exactly one of url and url_file")
        if self.url is not None and not self.url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("url", "expected redis://, rediss:// or unix://")


class Mesh(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which mesh this pod belongs to. Its members meet in Redis, or are listed in `peers`."""

    name: Annotated[Name, doc("the mesh; part of every Redis key")] = "default"
    pod: Annotated[Name, doc("this pod, unique in the mesh")]
    advertise: Annotated[Address | None, doc("where callers reach this pod; absent: `listen`")] = None
    listen: Annotated[Address | None, doc("listener for peers; absent: a free port")] = None
    secret_file: Annotated[
        Text | None, doc("key shared by peers; a second line is believed, too. Absent: one kept in Redis")
    ] = None
    spill: Annotated[
        Literal["off", "overload"],
        doc("overload: a full pod hands work to a peer, for meshes without a balancer"),
    ] = "off"
    max_replicas: Annotated[Count, doc("pods expected at most; bounds what leases may hand out")] = 256
    peers: Annotated[
        tuple[Address, ...], doc("mesh.listen of the other pods, for meshes that do not meet in Redis")
    ] = ()


class Tenant(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who is charged and fairly shared between."""

    name: Annotated[Name, doc("unique; the label in metrics and logs")]
    key_sha256: Annotated[tuple[KeyHash, ...], doc("SHA-256 of each bare API key, in hex")] = ()
    cls: Annotated[
        ClassName | None, doc("its class, the highest it may ask for; absent: `standard`, else the lowest")
    ] = field(name="class", default=None)
    weight: Annotated[
        Annotated[float, Meta(gt=0, le=1000, title="a number above 0, at most 1000")],
        doc("share of its class against the other tenants"),
    ] = 1.0

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "key_sha256", tuple(h.lower() for h in self.key_sha256))


class ServiceClass(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one class of work is promised."""

    ttft_s: Annotated[Seconds, doc("objective: seconds to the first token")] = 3.0
    itl_ms: Annotated[Milliseconds, doc("objective: milliseconds between tokens")] = 60.0
    share: Annotated[
        Share, doc("part of the engine this class always gets when it asks; 0: higher classes may starve it")
    ] = 0.05
    ceiling: Annotated[
        Annotated[float, Meta(gt=0, le=1, title="a number above 0, at most 1")],
        doc("most of the engine's room that it may hold together with all others"),
    ] = 1.0
    max_wait_s: Annotated[
        Seconds | None, doc("longest wait for a first token, else it is refused; absent: ttft_s")
    ] = None

    @property
    def wait_s(self) -> float:
        """How long its requests may wait for a first token."""
        return self.max_wait_s or self.ttft_s


CLASSES: Final = {
    "premium": ServiceClass(ttft_s=1.0, share=0.4),
    "standard": ServiceClass(),
    "batch": ServiceClass(ttft_s=30.0),
}
_MOST_CLASSES: Final = 8


class ClassRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sets the class of requests that name none themselves. All that is given must match."""

    cls: Annotated[ClassName, doc("the class; a tenant's own stays the ceiling")] = field(name="class")
    route: Annotated[UrlPath | None, doc("prefix of the path")] = None
    model: Annotated[Text | None, doc("model name as the caller writes it")] = None
    header: Annotated[dict[Text, Text], doc("header fields and the values they must have")] = {}
    key_sha256: Annotated[tuple[KeyHash, ...], doc("one of these keys, hashed")] = ()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "key_sha256", tuple(h.lower() for h in self.key_sha256))
        msgspec.structs.force_setattr(self, "header", {k.lower(): v for k, v in self.header.items()})


class Limit(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One rate or concurrency limit. All limits that match a request apply."""

    name: Annotated[Name, doc("unique; appears in RateLimit headers and metrics")]
    by: Annotated[
        tuple[Text, ...], doc("a bucket for each tenant, key, model, client_ip, header:<name>; []: one")
    ] = ()
    unit: Annotated[Literal["requests", "tokens", "concurrent"], doc("what is counted")] = "requests"
    limit: Annotated[Amount, doc("how much fits into one window, or runs at once")]
    window_s: Annotated[
        Annotated[float, Meta(ge=1, le=MONTH, title="seconds from 1 to 31 days")],
        doc("the window; without meaning for unit concurrent"),
    ] = 60.0
    burst: Annotated[Amount | None, doc("how much may come at once; absent: 10 s of the rate, or 1")] = None
    on_store_down: Annotated[
        Literal["local", "open", "closed"], doc("without Redis: count alone, let all pass, or refuse all")
    ] = "local"
    shadow: Annotated[bool, doc("evaluate and count, but refuse nothing")] = False
    pace: Annotated[bool, doc("let a request wait for its turn instead of refusing it")] = False
    max_wait_ms: Annotated[Milliseconds, doc("with pace: the longest wait")] = 1000.0

    def __post_init__(self) -> None:
        by = tuple(dimension.lower() for dimension in self.by)
        for i, dimension in enumerate(by):
            if dimension not in _DIMENSIONS and not _HEADER.fullmatch(dimension):
                raise ConfigError(f"by[{i}]", f"expected one of {', '.join(_DIMENSIONS)}, header:<name>")
            if dimension in by[:i]:
                raise ConfigError(f"by[{i}]", f"{dimension} is listed twice")
        msgspec.structs.force_setattr(self, "by", by)
        if self.unit == "concurrent" and self.burst is not None:
            raise ConfigError("burst", "has no meaning for unit concurrent")


class Admission(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When a request may run on this pod."""

    mode: Annotated[
        Literal["on", "off", "shadow"],
        doc("off: everything runs at once; shadow: likewise, but what `on` would do is counted"),
    ] = "on"
    max_in_flight: Annotated[Count, doc("requests that run at once; more wait")] = 256
    max_queue: Annotated[
        CountOrNone, doc("requests that wait; beyond it the least important go. 0: nobody waits")
    ] = 4096
    max_queue_bytes: Annotated[Bytes, doc("bodies of requests that wait; beyond it likewise")] = 128 * MIB
    queue_timeout_s: Annotated[
        Seconds | None, doc("longest wait in the queue; absent: what the class allows")
    ] = None
    aging_s: Annotated[Seconds, doc("who has waited for so long counts as one class higher")] = 30.0
    invited: Annotated[
        Share, doc("part of each class's rate that is promised to refused callers; 0: nobody is invited back")
    ] = 0.05
    preempt: Annotated[
        Literal["off", "unstarted", "started"],
        doc("for a blocked class, lower work waits again; started: the lowest also ends in mid-answer"),
    ] = "unstarted"
    overload_status: Annotated[
        Literal[503, 429, 529], doc("status of `overloaded`, for clients that expect another")
    ] = 503


class Breakers(Struct, frozen=True):
    """What is in force of Envoy's circuit breakers for the engine; work is admitted within them."""

    max_connections: int
    max_pending_requests: int
    max_requests: int
    max_retries: int


class Timeouts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long each wait may last."""

    connect_s: Annotated[Seconds, doc("to connect to the engine")] = 1.0
    head_s: Annotated[Seconds, doc("for a whole request head, from its first byte")] = 10.0
    body_s: Annotated[Seconds, doc("for each 16 KiB of a request body, or its end")] = 30.0
    first_byte_s: Annotated[Seconds, doc("from dispatch to the engine's first byte")] = 600.0
    stall_s: Annotated[Seconds, doc("between two pieces of a streamed answer")] = 300.0
    request_s: Annotated[
        Seconds | None, doc("from a request's arrival to its answer's end; absent: as long as it goes on")
    ] = None
    keep_alive_s: Annotated[
        Seconds, doc("an idle client connection; must outlast the idle time-out of the proxy in front")
    ] = 75.0
    engine_idle_s: Annotated[
        Seconds, doc("an engine connection idle for longer is not reused; uvicorn closes its own at 5 s")
    ] = 4.0


class Telemetry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the sidecar leaves behind for people and machines to read."""

    access_log: Annotated[
        Literal["off", "errors", "all", "sampled"], doc("sampled: all errors and a part of the rest")
    ] = "errors"
    access_log_sample: Annotated[
        Annotated[float, Meta(gt=0, le=1, title="a number above 0, at most 1")], doc("that part")
    ] = 0.01
    receipts: Annotated[
        Annotated[int, Meta(ge=0, le=100_000, title="a whole number from 0 to 100000")],
        doc("decisions kept for /debug/decisions"),
    ] = 1000
    orca: Annotated[
        Literal["on", "off"], doc("endpoint-load-metrics on answers: how full this pod is, for balancers")
    ] = "on"
    slow_ms: Annotated[Milliseconds | None, doc("slower requests are always traced; absent: none are")] = None
    max_traces_per_s: Annotated[Count, doc("at most so many sampled traces a second")] = 50
    max_series: Annotated[
        Count, doc("distinct (tenant, model, class) in metrics, later ones are `other`; read at start")
    ] = 1000


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The configuration of one sidecar."""

    listen: Annotated[Address, doc("where clients connect")] = Address(host="0.0.0.0", port=8080)
    admin: Annotated[Address, doc("/live /ready /metrics /debug; keep it off the network")] = Address(
        host="127.0.0.1", port=9911
    )
    health_listen: Annotated[Address | None, doc("serves grpc.health.v1 of this pod")] = None
    state_file: Annotated[Text | None, doc("keeps what was learnt over a restart")] = None
    drain_s: Annotated[Seconds, doc("how long running streams may go on after SIGTERM")] = 600.0
    drain_notice_s: Annotated[
        SecondsOrNone, doc("of them connections are still accepted: two intervals of who checks our health")
    ] = 4.0
    max_body_bytes: Annotated[Bytes, doc("largest request body; larger ones get 413")] = 16 * MIB
    max_buffered_bytes: Annotated[
        Bytes, doc("all buffered bodies together; beyond it 503. Half of it for answers that are not read")
    ] = 256 * MIB
    max_connections: Annotated[Count, doc("open client connections")] = 10_000
    max_connections_per_client: Annotated[
        Count | None, doc("of them from one address, trusted proxies apart; absent: any number")
    ] = None
    max_loop_lag_ms: Annotated[
        Milliseconds, doc("event loop later than this for 1 s: this pod is not ready")
    ] = 500.0
    log_level: Annotated[LogLevel, doc("of the program's own log")] = "info"
    engine: Engine
    redis: Redis | None = None
    mesh: Mesh | None = None
    trusted_proxies: Annotated[
        tuple[Text, ...], doc("CIDRs whose X-Forwarded-For and x-request-start are believed")
    ] = ()
    unknown_keys: Annotated[
        Literal["allow", "reject"], doc("allow: they are the tenant `anonymous`; reject: 401")
    ] = "allow"
    tenants: Annotated[tuple[Tenant, ...], doc("`anonymous` (standard) is added when absent")] = ()
    tenants_from: Annotated[Literal["redis"] | None, doc("further tenants live in Redis")] = None
    classes: Annotated[
        dict[ClassName, ServiceClass],
        doc("highest first; keys of premium, standard, batch may be changed; other names replace all"),
    ] = field(default_factory=CLASSES.copy)
    class_rules: Annotated[tuple[ClassRule, ...], doc("the first that matches counts")] = ()
    limits: tuple[Limit, ...] = ()
    admission: Admission = Admission()
    outlier: Outlier = Outlier()
    retry: Retry = Retry()
    timeouts: Timeouts = Timeouts()
    telemetry: Telemetry = Telemetry()

    def __post_init__(self) -> None:
        if self.max_body_bytes > self.max_buffered_bytes:
            raise ConfigError("max_body_bytes", "is larger than max_buffered_bytes: could never pass")
        msgspec.structs.force_setattr(self, "trusted_proxies", _networks(self.trusted_proxies))
        _check_addresses(self)
        msgspec.structs.force_setattr(self, "classes", _classes(self.classes))
        msgspec.structs.force_setattr(self, "tenants", _classed(self.tenants, self.classes))
        for i, rule in enumerate(self.class_rules):
            _check_class(f"class_rules[{i}].class", rule.cls, self.classes)
        _check_tenants(self.tenants)
        _check_unique("limits", [limit.name for limit in self.limits])
        if all(tenant.name != "anonymous" for tenant in self.tenants):
            anonymous = _classed((Tenant(name="anonymous"),), self.classes)
            msgspec.structs.force_setattr(self, "tenants", self.tenants + anonymous)
        if self.redis is None and self.tenants_from:
            raise ConfigError("tenants_from", "needs redis, which is not configured")
        if self.redis is None and self.mesh and not (self.mesh.peers and self.mesh.secret_file):
            raise ConfigError("mesh", "needs redis, or both mesh.peers and mesh.secret_file")

    def breakers(self) -> Breakers:
        """Each is what its key says, or what admission bounds anyway."""
        engine, admission = self.engine, self.admission
        # Work is admitted within narrower bounds; nothing else is refused that has found a connection to us.
        most = engine.max_requests or self.max_connections
        return Breakers(
            max_connections=min(engine.max_connections or most, most),  # each request takes one
            max_pending_requests=min(engine.max_pending_requests or admission.max_queue, admission.max_queue),
            max_requests=most,
            max_retries=engine.max_retries,
        )

    def unbuilt(self) -> list[str]:
        """Sections that are given and accepted, but have no effect in this version."""
        given = {
            "limits": self.limits,
            "redis": self.redis and not self.mesh,
            "tenants_from": self.tenants_from,
            "telemetry.slow_ms": self.telemetry.slow_ms,
        }
        return [name for name, value in given.items() if value]


def _classes(given: dict[str, ServiceClass]) -> dict[str, ServiceClass]:
    """All classes, highest first."""
    classes = {**CLASSES, **given} if given.keys() <= CLASSES.keys() else given
    if len(classes) > _MOST_CLASSES:
        raise ConfigError("classes", f"{len(classes)} classes; at most {_MOST_CLASSES}")
    total = sum(one.share for one in classes.values())
    if total > 1 + 1e-9:
        raise ConfigError("classes", f"the shares sum to {total:g}; at most 1 can be guaranteed")
    return classes


def _classed(tenants: tuple[Tenant, ...], classes: dict[str, ServiceClass]) -> tuple[Tenant, ...]:
    """The same, each with a class that exists."""
    usual = "standard" if "standard" in classes else next(reversed(classes))
    for i, tenant in enumerate(tenants):
        if tenant.cls is None:
            msgspec.structs.force_setattr(tenant, "cls", usual)
        else:
            _check_class(f"tenants[{i}].class", tenant.cls, classes)
    return tenants


def _check_class(path: str, name: str | None, classes: dict[str, ServiceClass]) -> None:
    if name not in classes:
        raise ConfigError(path, f"there is no class {name!r}; there are {', '.join(classes)}")


def _networks(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Canonical CIDRs; a lone address is a network of one."""
    networks = []
    for i, text in enumerate(texts):
        try:
            networks.append(str(ipaddress.ip_network(text)))
        except ValueError as error:
            raise ConfigError(f"trusted_proxies[{i}]", f"expected a CIDR as 10.0.0.0/8: {error}") from None
    return tuple(networks)


def _check_addresses(config: Config) -> None:
    seen: dict[Address, str] = {}
    listeners = {
        "listen": config.listen,
        "admin": config.admin,
        "health_listen": config.health_listen,
        "mesh.listen": config.mesh.listen if config.mesh else None,
    }
    for key, address in listeners.items():
        if address is None or (not address.path and address.port == 0):
            continue
        if address in seen:
            raise ConfigError(key, f"is the same address as {seen[address]}")
        seen[address] = key
    if config.engine.address in seen:
        raise ConfigError("engine.address", f"is this sidecar's own {seen[config.engine.address]}")
    engine = config.engine
    for key, address in (
        ("address", engine.address),
        ("health.address", engine.health_address),
        ("metrics.address", engine.metrics_address),
    ):
        if not address.path and address.port == 0:
            raise ConfigError(f"engine.{key}", "port 0 cannot be connected to")


def _check_tenants(tenants: tuple[Tenant, ...]) -> None:
    _check_unique("tenants", [tenant.name for tenant in tenants])
    owner: dict[str, str] = {}
    for i, tenant in enumerate(tenants):
        for j, key in enumerate(tenant.key_sha256):
            if key in owner:
                raise ConfigError(f"tenants[{i}].key_sha256[{j}]", f"is already a key of {owner[key]}")
            owner[key] = tenant.name


def _check_unique(section: str, names: list[str]) -> None:
    first: dict[str, int] = {}
    for i, name in enumerate(names):
        if first.setdefault(name, i) != i:
            raise ConfigError(f"{section}[{i}].name", f"{section}[{first[name]}] is already called {name}")
