"""What `headgate up` would run: ports, files, command lines, and what it prints."""

import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.gateway import Address
from mesh.local import plan
from mesh.local.plan import Binaries, Options
from sidecar import config

FOLDER = Path("/run/up")
BOTH = Binaries(valkey=Path("/bin/valkey-server"), envoy=Path("/bin/envoy"))


def laid_out(options: Options) -> plan.Layout:
    return plan.lay_out(options, itertools.count(20001))


def parts(options: Options, binaries: Binaries = BOTH) -> dict[str, plan.Part]:
    return {part.name: part for part in plan.parts(laid_out(options), options, binaries, FOLDER)}


def sidecar_file(options: Options, pod: str) -> dict[str, Any]:
    text = plan.files(laid_out(options), options)[f"sidecar-{pod}.yaml"]
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def listeners(layout: plan.Layout) -> list[Address]:
    found = [layout.valkey, layout.envoy, layout.envoy_admin]
    for pod in layout.pods:
        found += [pod.engine, pod.engine_health, pod.sidecar, pod.sidecar_admin, pod.sidecar_health]
    return [address for address in found if address]


@pytest.mark.parametrize("options", [Options(pods=3), Options(envoy=False), Options(redis="redis://r:1/0")])
def test_everything_listens_on_loopback_on_a_port_of_its_own(options: Options) -> None:
    addresses = listeners(laid_out(options))
    assert len(set(addresses)) == len(addresses)
    assert {address.host for address in addresses} == {"127.0.0.1"}


@pytest.mark.parametrize("envoy", [True, False])
def test_callers_find_the_mesh_on_the_port_with_or_without_a_gateway(envoy: bool) -> None:
    layout = laid_out(Options(port=8123, envoy=envoy))
    assert layout.url == "http://127.0.0.1:8123"


def test_tiers_are_in_the_order_in_which_parts_need_each_other() -> None:
    planned = list(parts(Options(pods=2)).values())
    assert [[part.name for part in tier] for tier in plan.tiers(planned)] == [
        ["valkey"],
        ["pod-0", "pod-1"],
        ["sidecar-pod-0", "sidecar-pod-1"],
        ["envoy"],
    ]


def test_what_is_not_wanted_is_not_run() -> None:
    options = Options(pods=1, envoy=False, redis="redis://elsewhere:6379/0")
    assert set(parts(options, Binaries(None, None))) == {"pod-0", "sidecar-pod-0"}
    assert "envoy.yaml" not in plan.files(laid_out(options), options)
    assert sidecar_file(options, "pod-0")["redis"]["url"] == "redis://elsewhere:6379/0"


@pytest.mark.parametrize("options", [Options(), Options(envoy=False)])
def test_the_sidecar_accepts_its_file(options: Options) -> None:
    for name, text in plan.files(laid_out(options), options).items():
        if name.startswith("sidecar"):
            config.decode(text, {})


def test_a_sidecar_stands_beside_its_own_pod() -> None:
    layout = laid_out(Options())
    pod = layout.pods[1]
    file = sidecar_file(Options(), "pod-1")
    assert file["engine"]["address"] == str(pod.engine)
    assert file["engine"]["health"]["address"] == str(pod.engine_health)
    assert file["mesh"]["pod"] == "pod-1"
    command = parts(Options())["pod-1"].argv
    assert command[command.index("--listen") + 1] == str(pod.engine)
    assert command[command.index("--health-listen") + 1] == str(pod.engine_health)


def test_only_a_gateway_of_ours_is_believed() -> None:
    assert sidecar_file(Options(), "pod-0")["trusted_proxies"] == ["127.0.0.1/32"]
    assert sidecar_file(Options(envoy=False), "pod-0")["trusted_proxies"] == []


def test_the_gateway_knows_every_sidecar() -> None:
    options = Options(pods=3)
    layout = laid_out(options)
    document = yaml.safe_load(plan.files(layout, options)["envoy.yaml"])
    (pods,) = document["static_resources"]["clusters"]
    (locality,) = pods["load_assignment"]["endpoints"]
    ports = [
        member["endpoint"]["address"]["socket_address"]["port_value"] for member in locality["lb_endpoints"]
    ]
    assert ports == [pod.sidecar.port for pod in layout.pods]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(), ["--engine", "transformers", "--tiny"]),
        (Options(model="/models/m"), ["--engine", "transformers", "--model", "/models/m"]),
        (Options(engine="fake"), ["--engine", "fake"]),
    ],
)
def test_the_engine_is_what_was_asked_for(options: Options, words: list[str]) -> None:
    argv = list(parts(options)["pod-0"].argv)
    assert argv[3 : argv.index("--listen")] == words
    assert argv[-2:] == ["--threads", "1"]


def test_the_summary_names_every_url_and_pid() -> None:
    layout = laid_out(Options(pods=1))
    pids = {"valkey": 1, "pod-0": 2, "sidecar-pod-0": 3, "envoy": 4}
    assert plan.summary(layout, pids) == {
        "url": "http://127.0.0.1:8000",
        "envoy": {"url": "http://127.0.0.1:8000", "admin": "http://127.0.0.1:20007", "pid": 4},
        "redis": {"url": "redis://127.0.0.1:20006/0", "pid": 1},
        "pods": [
            {
                "name": "pod-0",
                "url": "http://127.0.0.1:20001",
                "health": "127.0.0.1:20002",
                "pid": 2,
                "sidecar": {
                    "url": "http://127.0.0.1:20003",
                    "admin": "http://127.0.0.1:20004",
                    "health": "127.0.0.1:20005",
                    "pid": 3,
                },
            }
        ],
    }


def test_what_does_not_run_here_has_no_pid() -> None:
    options = Options(pods=1, envoy=False, redis="redis://:secret@elsewhere:6379/0")
    layout = laid_out(options)
    pids = {"pod-0": 2, "sidecar-pod-0": 3}
    summary = plan.summary(layout, pids)
    assert summary["envoy"] is None
    assert summary["redis"] == {"url": "redis://:***@elsewhere:6379/0", "pid": None}
    assert "secret" not in plan.report(layout, pids, "m", FOLDER)


def test_the_report_shows_each_part_and_a_request_that_a_shell_understands() -> None:
    layout = laid_out(Options(pods=2))
    pids = {part: number for number, part in enumerate(parts(Options(pods=2)), 101)}
    text = plan.report(layout, pids, "tiny", FOLDER)
    for pid in pids.values():
        assert f"pid {pid}" in text
    command = text[text.index("curl") : text.index("Ctrl-C")]
    words = shlex.split(command)
    assert words[2] == "http://127.0.0.1:8000/v1/chat/completions"
    body = json.loads(words[words.index("-d") + 1])
    assert body["model"] == "tiny"
    assert body["stream"] is True


@pytest.mark.parametrize(
    ("env", "found"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://10.0.0.9:4319"}, Address("10.0.0.9", 4319)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector"}, Address("collector", 4318)),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector:4318"}, None),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2/v1/traces",
            },
            Address("b", 2),
        ),
    ],
)
def test_the_collector_is_the_standard_variables(env: dict[str, str], found: Address | None) -> None:
    assert plan.collector(env) == found


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://u:p@h:1/0", "redis://u:***@h:1/0"),
        ("rediss://:p%40x@h/0?a=b", "rediss://:***@h/0?a=b"),
    ],
)
def test_passwords_are_not_shown(url: str, shown: str) -> None:
    assert plan.without_password(url) == shown
