"""Envoys that guard engines without us: what `headgate bench` compares sidecars with. Pure.

One Envoy before all engines, least request, and one protection each, set as well as we know how for these
engines and these loads:

adaptive   adaptive_concurrency. Its limit is  L' = g·L + √L,  g = (minRTT + 25 %) / (median duration of the
           last second). minRTT is given, not measured: with answers of many seconds, its 50 samples at low
           concurrency would last longer than a run. It is the median duration of an engine that is busy and
           not yet full. The limit is kept near what an engine holds (75): left alone it grows into the
           thousands while load is low, and durations tell of a queue only once its first have come through.
admission  admission_control: refuses with probability (n - s/0.95) / (n + 1), n asked and s well answered in
           the last 10 s. Only failures move it, and an engine fails only when its own queue is full: give it
           a short one.
fifo       No filter: 64 connections to each engine; whoever comes then waits in Envoy, in order of arrival.
outlier    What Envoy has against engines that fail: each is asked for its health every second and out after
           two failures; five failures in a row eject it for 30 s, at most half of all. A request is tried
           again on another engine, twice at most, after any 5xx, reset or `PER_TRY_S` of silence without an
           answer, while retries are less than a fifth of what runs.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from mesh.gateway import Address, Document, socket_address

# From where to listen, the admin's address and the engines.
Builder = Callable[[Address, Address, Sequence[Address]], Document]

FIFO_CONNECTIONS: Final = 64
MIN_RTT_S: Final = 4.5
ADAPTIVE_LEAST: Final = 32
ADAPTIVE_MOST: Final = 72
# As soon as Headgate tries another pod: `retry.per_try_min_s`.
PER_TRY_S: Final = 5
MOST_EJECTED: Final = 0.5

_TYPES: Final = "type.googleapis.com/envoy.extensions"
_NO_LIMIT: Final = 1_000_000


def adaptive(listen: Address, admin: Address, engines: Sequence[Address]) -> Document:
    """adaptive_concurrency over all engines."""
    gradient = {
        "sample_aggregate_percentile": {"value": 50},
        "concurrency_limit_params": {
            "max_concurrency_limit": ADAPTIVE_MOST * len(engines),
            "concurrency_update_interval": "1s",
        },
        # The limit's floor, and where it starts.
        "min_rtt_calc_params": {
            "fixed_value": f"{MIN_RTT_S}s",
            "min_concurrency": ADAPTIVE_LEAST * len(engines),
        },
    }
    kind = "adaptive_concurrency.v3.AdaptiveConcurrency"
    guard = _filter("adaptive_concurrency", kind, gradient_controller_config=gradient)
    return _document(listen, admin, engines, [guard])


def admission(listen: Address, admin: Address, engines: Sequence[Address]) -> Document:
    """admission_control on the answers' statuses."""
    guard = _filter(
        "admission_control",
        "admission_control.v3.AdmissionControl",
        enabled={"default_value": True, "runtime_key": "bench.admission"},
        sampling_window="10s",
        success_criteria={"http_criteria": {"http_success_status": [{"start": 100, "end": 500}]}},
    )
    return _document(listen, admin, engines, [guard])


def fifo(listen: Address, admin: Address, engines: Sequence[Address]) -> Document:
    """A fixed number of connections to each engine, and an endless queue before them."""
    document = _document(listen, admin, engines, [])
    breakers = document["static_resources"]["clusters"][0]["circuit_breakers"]
    breakers["per_host_thresholds"] = [{"priority": "DEFAULT", "max_connections": FIFO_CONNECTIONS}]
    return document


def outlier(listen: Address, admin: Address, engines: Sequence[Address]) -> Document:
    """Active health, outlier detection and retries."""
    document = _document(listen, admin, engines, [])
    cluster = document["static_resources"]["clusters"][0]
    cluster["health_checks"] = [
        {
            "http_health_check": {"path": "/health"},
            **dict.fromkeys(("timeout", "interval", "no_traffic_interval"), "1s"),
            **dict.fromkeys(("unhealthy_interval", "unhealthy_edge_interval"), "0.5s"),
            "unhealthy_threshold": 2,
            "healthy_threshold": 1,
        }
    ]
    cluster["outlier_detection"] = {
        "consecutive_5xx": 5,
        "interval": "1s",
        "base_ejection_time": "30s",
        "max_ejection_percent": round(100 * MOST_EJECTED),
        # An engine that fails requests and answers its checks is not well.
        "successful_active_health_check_uneject_host": False,
    }
    (threshold,) = cluster["circuit_breakers"]["thresholds"]
    threshold["retry_budget"] = {"budget_percent": {"value": 20}, "min_retry_concurrency": 3}
    (listener,) = document["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"] = _retries()
    return document


def _retries() -> Document:
    predicate = "retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_on": "5xx",  # connections that fail or break, and time-outs, among them
        "num_retries": 2,
        "per_try_idle_timeout": f"{PER_TRY_S}s",
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"{_TYPES}.{predicate}"},
            }
        ],
        "host_selection_retry_max_attempts": 32,
    }


def _filter(name: str, kind: str, **settings: Any) -> Document:
    return {
        "name": f"envoy.filters.http.{name}",
        "typed_config": {"@type": f"{_TYPES}.filters.http.{kind}", **settings},
    }


def _document(
    listen: Address, admin: Address, engines: Sequence[Address], guards: Sequence[Document]
) -> Document:
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "codec_type": "HTTP1",
        "use_remote_address": True,
        "stream_idle_timeout": "630s",
        "http_filters": [*guards, _filter("router", "router.v3.Router")],
        "route_config": _routes(),
    }
    network = {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}
    listener = {
        "name": "clients",
        "address": socket_address(listen),
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [network]}],
    }
    return {
        "admin": {"address": socket_address(admin)},
        "static_resources": {"listeners": [listener], "clusters": [_cluster(engines)]},
    }


def _routes() -> Document:
    # As in gateway.yaml: no clock on the whole answer, and only what cannot have run is repeated.
    route = {
        "cluster": "engines",
        "timeout": "0s",
        "retry_policy": {"retry_on": "connect-failure,reset-before-request", "num_retries": 2},
    }
    host = {"name": "engines", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
    return {"name": "engines", "virtual_hosts": [host]}


def _cluster(engines: Sequence[Address]) -> Document:
    endpoints = [{"endpoint": {"address": socket_address(engine)}} for engine in engines]
    limits = dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), _NO_LIMIT)
    protocol = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    options = {
        "@type": f"type.googleapis.com/{protocol}",
        "explicit_http_config": {"http_protocol_options": {}},
        "common_http_protocol_options": {"idle_timeout": "4s"},
    }
    return {
        "name": "engines",
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": "engines", "endpoints": [{"lb_endpoints": endpoints}]},
        "circuit_breakers": {"thresholds": [{"priority": "DEFAULT", **limits}]},
        "typed_extension_protocol_options": {protocol: options},
    }
