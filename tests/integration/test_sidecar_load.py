"""How full a pod is, as balancers and scalers see it: a real engine, sidecar and Envoy."""

import concurrent.futures
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.harness.processes import HOST, answers, envoy_binary, free_ports, get, running, wait_until
from tests.harness.sidecars import Pod, Sidecar, ask, chat_body, fake_pod, metric, sidecar, sidecar_settings

pytestmark = pytest.mark.integration

ENDLESS = 20_000  # tokens: longer than any test
QUICKLY = {"interval_s": 0.2}


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod() as started:
        yield started


@contextlib.contextmanager
def gate(folder: Path, pod: Pod, **sections: Any) -> Iterator[Sidecar]:
    settings = sidecar_settings(pod.port, engine={"metrics": QUICKLY}, **sections)
    with sidecar(folder, settings) as started:
        yield started


def load(headers: Any) -> dict[str, float]:
    """A load report in text."""
    entries = headers["endpoint-load-metrics"].removeprefix("TEXT ").split(",")
    return {name: float(value) for name, value in (entry.split("=") for entry in entries)}


def said(gate: Sidecar) -> dict[str, Any]:
    """What the sidecar knows of its engine's load."""
    found: dict[str, Any] = ask(f"{gate.admin}/debug/endpoints").json()[0]["load"]
    return found


def test_who_waits_here_shows_where_the_engine_shows_who_waits(tmp_path: Path, pod: Pod) -> None:
    with gate(tmp_path, pod, admission={"max_in_flight": 2}) as started, contextlib.ExitStack() as callers:
        started.process.wait_for(lambda: said(started)["age_s"] is not None, what="the page was seen")
        assert said(started)["kv_tokens"] > 0
        for _ in range(5):
            callers.enter_context(started.asking(max_tokens=ENDLESS))
        started.wait_for_gauges(in_flight=2, queued=3)
        pod.wait_until_generating(2)
        started.process.wait_for(lambda: said(started)["running"] == 2, what="the page was seen again")
        through = ask(f"{started.url}/metrics")
        assert through.headers["content-type"].startswith("text/plain")
        assert metric(started.url, "vllm:num_requests_waiting") == 3
        assert metric(started.url, "vllm:num_requests_running") == 2
        assert metric(pod.url, "vllm:num_requests_waiting") == 0, "the engine's own page knows nothing of it"
        report = load(ask(f"{started.url}/v1/models").headers)
        assert report["named_metrics.num_requests_waiting"] == 3
        assert report["named_metrics.num_requests_running"] >= 2  # and the one that asks
        assert report["application_utilization"] >= 2.5
        assert 0 < report["named_metrics.kv_cache_usage_perc"] < 1
    wait_until(lambda: pod.generating() == 0, what="the engine is free again")


def test_the_page_is_the_engines_own_again_when_it_is_not_looked_at(tmp_path: Path, pod: Pod) -> None:
    unwatched = {"metrics": {"kind": "none"}}
    settings = sidecar_settings(pod.port, engine=unwatched, admission={"max_in_flight": 1})
    with sidecar(tmp_path, settings) as started, started.asking(max_tokens=ENDLESS):
        started.wait_for_gauges(in_flight=1)
        with started.asking(max_tokens=ENDLESS):
            started.wait_for_gauges(queued=1)
            answer = ask(f"{started.url}/metrics")
            assert "via" in answer.headers, "the engine answered"
            assert metric(started.url, "vllm:num_requests_waiting") == 0
            assert said(started)["age_s"] is None
    wait_until(lambda: pod.generating() == 0, what="the engine is free again")


def test_refusals_and_answers_of_work_carry_a_report(tmp_path: Path, pod: Pod) -> None:
    with gate(tmp_path, pod, admission={"max_in_flight": 1, "max_queue": 0}) as started:
        first = started.chat()
        assert first.status == 200
        assert load(first.headers)["named_metrics.num_requests_running"] == 1
        with started.asking(max_tokens=ENDLESS):
            started.wait_for_gauges(in_flight=1)
            refused = started.chat(headers={"endpoint-load-metrics-format": "JSON"})
        assert refused.status == 503
        report = json.loads(refused.headers["endpoint-load-metrics"].removeprefix("JSON "))
        assert report["application_utilization"] == 1
    wait_until(lambda: pod.generating() == 0, what="the engine is free again")


_ROUND_ROBIN = "client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin"
CSWRR = f"envoy.extensions.load_balancing_policies.{_ROUND_ROBIN}"
MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"


def balancer(listen: int, admin: int, ports: list[int]) -> dict[str, Any]:
    """An Envoy that weighs its hosts by the reports on their answers."""

    def at(port: int) -> dict[str, Any]:
        return {"address": {"socket_address": {"address": HOST, "port_value": port}}}

    def typed(kind: str, **settings: Any) -> dict[str, Any]:
        return {"typed_config": {"@type": f"type.googleapis.com/{kind}", **settings}}

    router = {"name": "router", **typed("envoy.extensions.filters.http.router.v3.Router")}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "pods"}}
    hosts = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]}
    manager = typed(MANAGER, stat_prefix="gateway", http_filters=[router], route_config=hosts)
    policy = typed(CSWRR, blackout_period="0.001s", weight_update_period="0.1s")
    return {
        "admin": at(admin),
        "static_resources": {
            "listeners": [{**at(listen), "filter_chains": [{"filters": [{"name": "http", **manager}]}]}],
            "clusters": [
                {
                    "name": "pods",
                    "load_balancing_policy": {
                        "policies": [{"typed_extension_config": {"name": "cswrr", **policy}}]
                    },
                    "load_assignment": {
                        "cluster_name": "pods",
                        "endpoints": [{"lb_endpoints": [{"endpoint": at(port)} for port in ports]}],
                    },
                }
            ],
        },
    }


def test_envoy_weighs_pods_by_these_reports(tmp_path: Path, pod: Pod) -> None:
    """Of two sidecars one may run a quarter of what the other may: Envoy's weights must say so."""
    listen, admin = free_ports(2)
    (tmp_path / "small").mkdir()
    (tmp_path / "large").mkdir()
    with (
        gate(tmp_path / "small", pod, admission={"max_in_flight": 16}) as small,
        gate(tmp_path / "large", pod, admission={"max_in_flight": 64}) as large,
    ):
        ports = [small.port, large.port]
        file = tmp_path / "envoy.yaml"
        file.write_text(yaml.safe_dump(balancer(listen, admin, ports)))
        loud = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "debug"]
        envoy_runs = running([envoy_binary(), "-c", file, *loud])
        with envoy_runs as envoy, concurrent.futures.ThreadPoolExecutor(8) as callers:
            envoy.wait_for(lambda: answers(f"http://{HOST}:{admin}/ready"), what="Envoy is ready")

            def post(_: int) -> int:
                return ask(f"http://{HOST}:{listen}/v1/chat/completions", "POST", body=chat_body()).status

            def weights() -> dict[int, int]:
                clusters = json.loads(get(f"http://{HOST}:{admin}/clusters?format=json"))
                (pods,) = (each for each in clusters["cluster_statuses"] if each["name"] == "pods")
                return {
                    host["address"]["socket_address"]["port_value"]: host["weight"]
                    for host in pods["host_statuses"]
                }

            def settled() -> bool:
                assert set(callers.map(post, range(32))) == {200}
                found = weights()
                return found[large.port] >= 2 * found[small.port] > 2

            envoy.wait_for(settled, within_s=60.0, what="Envoy gives the larger pod more weight")
            complaints = [line for line in envoy.text().splitlines() if "orca" in line.lower()]
            # Of the first answers: until one is whole, there is no rate.
            assert [line for line in complaints if "QPS must be positive" not in line] == []
