"""What can be configured about engines that fail: how they are watched, when left, what is tried again.

Names and numbers of `Outlier` are Envoy's (outlier_detection.proto) where there is one, but for the mesh-wide
cap, which is larger, since it holds for all sidecars together and not for each.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from sidecar.errors import ConfigError
from sidecar.values import Address, Count, Milliseconds, Seconds, Share, UrlPath, doc

Percent = Annotated[int, Meta(ge=0, le=100, title="a whole number from 0 to 100")]
Status = Annotated[int, Meta(ge=500, le=599, title="a status from 500 to 599")]
Answer = Annotated[int, Meta(ge=200, le=599, title="a status from 200 to 599")]
Service = Annotated[str, Meta(max_length=1024, title="text of at most 1024 characters")]
SecondsOrNone = Annotated[float, Meta(ge=0, le=86_400, title="seconds from 0 to 86400")]
_RETRIED: Final = (500, 502, 503, 504)


class Health(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How the sidecar asks the engine whether it is well. Names are Envoy's (health_check.proto)."""

    kind: Annotated[
        Literal["grpc", "http", "tcp", "none"],
        doc("grpc.health.v1, GET of `path`, a connection, or none: taken as healthy"),
    ] = "none"
    address: Annotated[Address | None, doc("where to ask; absent: engine.address")] = None
    path: Annotated[UrlPath, doc("for kind http")] = "/health"
    expected_statuses: Annotated[
        tuple[Answer, ...], doc("for kind http: another one says that it is ill")
    ] = (200,)
    service: Annotated[Service, doc("for kind grpc: which one is meant; empty: the whole server")] = ""
    watch: Annotated[
        Literal["on", "off"], doc("for kind grpc: hear of changes between checks, where the engine has Watch")
    ] = "on"
    interval_s: Annotated[Seconds, doc("between two checks of an engine that is well")] = 5.0
    timeout_s: Annotated[Seconds, doc("no answer within this time is a failed check")] = 1.0
    unhealthy_threshold: Annotated[
        Count, doc("failed connections and time-outs in a row; an answer that it is ill counts at once")
    ] = 2
    healthy_threshold: Annotated[Count, doc("successes in a row; the very first check decides alone")] = 1
    unhealthy_interval_s: Annotated[
        Seconds | None, doc("after a failure of one that is not well; absent: 0.2, or interval_s if shorter")
    ] = None
    unhealthy_edge_interval_s: Annotated[
        Seconds | None, doc("after a failure, until so many have come; absent: unhealthy_interval_s")
    ] = None
    healthy_edge_interval_s: Annotated[
        Seconds | None, doc("after a success, until so many have come; absent: interval_s")
    ] = None
    interval_jitter_percent: Annotated[Percent, doc("pauses are longer by up to so much, by chance")] = 0
    initial_jitter_s: Annotated[SecondsOrNone, doc("the first check waits up to so long, by chance")] = 0.0
    progress: Annotated[
        Literal["on", "off"], doc("on: an engine whose work does not move is unhealthy, whatever it says")
    ] = "on"
    progress_s: Annotated[
        Seconds, doc("without a token for so long, ten times the usual gap, or four times its prompts' time")
    ] = 5.0
    first_use_s: Annotated[Seconds, doc("likewise, before its first token: it may have to compile")] = 120.0

    def __post_init__(self) -> None:
        if not self.expected_statuses:
            raise ConfigError("expected_statuses", "is empty: no answer could ever be the right one")


class Outlier(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When an engine that answers its checks is left all the same."""

    mode: Annotated[
        Literal["on", "off", "shadow"], doc("shadow: what `on` would do is counted and shown, and not done")
    ] = "on"
    interval_s: Annotated[Seconds, doc("between two looks at success rates")] = 10.0
    consecutive_5xx: Annotated[Count, doc("so many answers of 500 and above in a row")] = 5
    consecutive_gateway_failure: Annotated[Count, doc("so many of 502, 503, 504 in a row")] = 5
    consecutive_local_origin_failure: Annotated[
        Count, doc("so many time-outs, resets and refused connections in a row")
    ] = 5
    enforcing_consecutive_5xx: Annotated[Percent, doc("of detections that eject")] = 100
    enforcing_consecutive_gateway_failure: Annotated[Percent, doc("likewise")] = 0
    enforcing_consecutive_local_origin_failure: Annotated[Percent, doc("likewise")] = 100
    enforcing_success_rate: Annotated[Percent, doc("likewise")] = 100
    enforcing_failure_percentage: Annotated[Percent, doc("likewise")] = 0
    success_rate_minimum_hosts: Annotated[Count, doc("engines with enough requests, to compare at all")] = 5
    success_rate_request_volume: Annotated[Count, doc("requests in one interval that are enough")] = 100
    success_rate_stdev_factor: Annotated[
        Count, doc("ejected below mean - factor / 1000 standard deviations of all")
    ] = 1900
    failure_percentage_threshold: Annotated[Percent, doc("ejected from this percentage of failures on")] = 85
    failure_percentage_minimum_hosts: Annotated[Count, doc("engines with enough requests")] = 5
    failure_percentage_request_volume: Annotated[Count, doc("requests in one interval that are enough")] = 50
    slow_z: Annotated[
        Annotated[float, Meta(gt=0, le=1000, title="a number above 0, at most 1000")],
        doc("ejected when this many robust deviations slower than its peers, to the first token or between"),
    ] = 3.5
    slow_ratio: Annotated[
        Annotated[float, Meta(gt=1, le=1000, title="a number above 1, at most 1000")],
        doc("and this many times slower than their median"),
    ] = 1.5
    slow_windows: Annotated[Count, doc("in so many seconds in a row")] = 3
    base_ejection_time_s: Annotated[Seconds, doc("of the first; each further one is longer by it")] = 30.0
    max_ejection_time_s: Annotated[Seconds, doc("of any ejection")] = 300.0
    max_ejection_time_jitter_s: Annotated[SecondsOrNone, doc("at most so much is added by chance")] = 5.0
    max_ejection_percent: Annotated[
        Percent, doc("of the mesh at any time, with Redis; of three pods and more always one")
    ] = 20
    local_max_ejection_percent: Annotated[Percent, doc("likewise, while Redis is away")] = 10
    panic_threshold_percent: Annotated[
        Percent, doc("while fewer pods than this are well, ejections are ignored; 0: never")
    ] = 50
    slow_start_s: Annotated[SecondsOrNone, doc("after it, what came back has its full share")] = 30.0

    def __post_init__(self) -> None:
        if self.max_ejection_time_s < self.base_ejection_time_s:
            raise ConfigError("max_ejection_time_s", "is less than base_ejection_time_s")


class Retry(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is tried again on another pod, before its caller has got a byte. Needs `mesh`."""

    mode: Annotated[Literal["on", "off"], doc("off: the first failure is the answer")] = "on"
    max_retries: Annotated[
        Annotated[int, Meta(ge=0, le=10, title="a whole number from 0 to 10")], doc("of one request")
    ] = 2
    statuses: Annotated[
        tuple[Status, ...], doc("answers of an engine that are tried again, besides broken connections")
    ] = _RETRIED
    budget: Annotated[
        Share, doc("tokens that retries may cost, as a part of those of first attempts, over 10 s")
    ] = 0.1
    base_ms: Annotated[Milliseconds, doc("longest first pause; each further one up to twice as long")] = 25.0
    max_ms: Annotated[Milliseconds, doc("longest pause")] = 1000.0
    per_try_min_s: Annotated[
        Seconds, doc("a first token is waited for at least this long before another pod is tried")
    ] = 5.0
    per_try_max_s: Annotated[Seconds, doc("and at most this long, whatever the engine usually takes")] = 30.0
    hedge: Annotated[
        Literal["on", "off"],
        doc("on: another pod is asked as well once a first token takes longer than 95 % do"),
    ] = "off"

    def __post_init__(self) -> None:
        if self.max_ms < self.base_ms:
            raise ConfigError("max_ms", "is less than base_ms")
        if self.per_try_max_s < self.per_try_min_s:
            raise ConfigError("per_try_max_s", "is less than per_try_min_s")
