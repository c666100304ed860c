"""Reading what sidecars and Envoy say. That they say it: integration."""

from itertools import count

import pytest

from mesh.bench.faults.watch import ejected_by_sidecar, hosts, places, sent_to_engine
from mesh.local import plan
from mesh.local.plan import Options

LAYOUT = plan.lay_out(Options(pods=2), count(20001))
KNOWN = places(LAYOUT)


@pytest.mark.parametrize("name", ["pod-1", "sidecar-pod-1", "127.0.0.1:20006", "127.0.0.1:20008"])
def test_a_pod_has_several_names(name: str) -> None:
    assert KNOWN[name] == 1


@pytest.mark.parametrize(
    ("page", "ejected"),
    [
        ([{"address": "127.0.0.1:20001", "healthy": True, "in_flight": 3}], set()),
        ([{"pod": "pod-0", "state": "ejected"}, {"pod": "pod-1", "state": "up"}], {0}),
        ({"self": {"pod": "pod-0", "ejected": False}, "peers": [{"name": "pod-1", "ejected": True}]}, {1}),
        ([{"address": "127.0.0.1:20006", "ejected": True}], {1}),
        ([{"pod": "of another mesh", "ejected": True}], set()),
        ([{"pod": ["pod-0"], "ejected": True}], set()),
        ({}, set()),
    ],
)
def test_what_a_sidecar_says_is_ejected(page: object, ejected: set[int]) -> None:
    assert ejected_by_sidecar(page, KNOWN) == ejected


def test_what_a_sidecar_sent_is_what_ended_and_what_runs() -> None:
    page = b"""# TYPE headgate_attempts_total counter
headgate_attempts_total{outcome="ok",to="engine"} 5
headgate_attempts_total{to="engine",outcome="reset"} 2.0
headgate_attempts_total{outcome="ok",to="peer"} 40
headgate_in_flight 3
"""
    assert sent_to_engine(page) == 10
    assert sent_to_engine(b"headgate_in_flight 3\n") is None


def host(port: int, stats: dict[str, str], **health: bool) -> dict[str, object]:
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "stats": [{"type": "COUNTER", "name": name, "value": value} for name, value in stats.items()]
        + [{"type": "COUNTER", "name": "cx_total"}],
        "health_status": {"eds_health_status": "HEALTHY", **health},
    }


def test_what_envoy_says_of_its_hosts() -> None:
    found = [
        host(20001, {"rq_total": "7", "rq_active": "1"}),
        host(20006, {}, failed_outlier_check=True),
        host(9, {"rq_total": "1"}),
    ]
    page = {"cluster_statuses": [{"name": "engines", "host_statuses": found}, {"name": "otel_collector"}]}
    assert list(hosts(page, KNOWN)) == [(0, 7.0, False), (1, 0.0, True)]
