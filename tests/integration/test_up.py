"""`headgate up`, the whole of it: real Valkey, pods with the fake engine, sidecars, Envoy."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.harness.processes import (
    HOST,
    Running,
    answers,
    envoy_binary,
    free_port,
    get,
    is_alive,
    listens,
    running,
    valkey_binary,
    wait_until,
)

pytestmark = pytest.mark.integration

UP = [sys.executable, "-m", "mesh", "up", "--engine", "fake"]
START_S = 60.0


class Mesh:
    """A running `headgate up` and the line of JSON that it printed."""

    def __init__(self, process: Running, summary: dict[str, Any]) -> None:
        self.process = process
        self.summary = summary

    @property
    def pids(self) -> dict[str, int]:
        """Of each part at the start."""
        found = {"envoy": self.summary["envoy"], "valkey": self.summary["redis"]}
        for pod in self.summary["pods"]:
            found |= {pod["name"]: pod, f"sidecar-{pod['name']}": pod["sidecar"]}
        return {name: part["pid"] for name, part in found.items() if part}

    def chat(self, **options: Any) -> str:
        """What the model says to one streamed request, without the SDK's own repeats."""
        url = f"{self.summary['url']}/v1"
        with openai.OpenAI(base_url=url, api_key="any", max_retries=0, timeout=20) as client:
            messages: Any = [{"role": "user", "content": "Hello"}]
            stream = client.chat.completions.create(
                model="fake", messages=messages, stream=True, max_tokens=8, **options
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    def can_chat(self) -> bool:
        with contextlib.suppress(openai.APIError):
            return bool(self.chat())
        return False

    def healthy(self) -> int:
        """How many pods the gateway sends requests to: each must have passed a check first."""
        page = get(f"{self.summary['envoy']['admin']}/stats?filter=cluster.pods.membership_healthy").decode()
        return int(page.rpartition(":")[2])

    def served(self) -> dict[str, float]:
        """How many requests each pod has completed."""
        pods = self.summary["pods"]
        return {pod["name"]: _succeeded(get(f"{pod['url']}/metrics").decode()) for pod in pods}


def _succeeded(metrics: str) -> float:
    return sum(float(value) for value in re.findall(r"^vllm:request_success_total\S* (\S+)$", metrics, re.M))


@contextlib.contextmanager
def mesh(folder: Path, *options: str) -> Iterator[Mesh]:
    """A mesh whose runtime folder is below `folder`."""
    envoy_binary()
    valkey_binary()
    argv = [*UP, "--json", "--port", str(free_port()), *options]
    with running(argv, {"TMPDIR": str(folder)}) as process:
        line = process.wait_for_line('{"url"', within_s=START_S)
        yield Mesh(process, json.loads(line))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(tmp_path_factory.mktemp("up")) as started:
        yield started


def test_the_summary_is_where_everything_is(shared: Mesh) -> None:
    assert shared.summary["envoy"]["url"] == shared.summary["url"]
    assert [pod["name"] for pod in shared.summary["pods"]] == ["pod-0", "pod-1"]
    urls = [f"{shared.summary['envoy']['admin']}/ready"]
    for pod in shared.summary["pods"]:
        sidecar = pod["sidecar"]
        urls += [f"{pod['url']}/health", f"{sidecar['admin']}/ready", f"{sidecar['url']}/v1/models"]
        assert listens(int(pod["health"].rpartition(":")[2]))
        assert listens(int(pod["sidecar"]["health"].rpartition(":")[2]))
    assert [url for url in urls if not answers(url)] == []
    assert [name for name, pid in shared.pids.items() if not is_alive(pid)] == []


def test_the_openai_client_streams_and_both_pods_serve(shared: Mesh) -> None:
    wait_until(lambda: shared.healthy() == 2, within_s=START_S, what="the gateway sees both pods")
    before = shared.served()
    with ThreadPoolExecutor(16) as callers:
        texts = list(callers.map(lambda _: shared.chat(), range(32)))
    assert all(texts)
    after = shared.served()
    assert sum(after.values()) - sum(before.values()) == 32
    # Slow start at the gateway gives the pod that came later a tenth of the draws: it may be none of 32.
    wait_until(lambda: shared.can_chat() and _all_grew(before, shared.served()), within_s=START_S)


@pytest.mark.parametrize("part", ["pod-0", "sidecar-pod-1", "envoy", "valkey"])
def test_a_killed_part_comes_back_and_requests_work(shared: Mesh, part: str) -> None:
    os.kill(shared.pids[part], signal.SIGKILL)
    shared.process.wait_for_line(f"{part}: was killed by signal 9; starting it again", within_s=START_S)
    wait_until(lambda: not is_alive(shared.pids[part]), what=f"the old {part} is gone")
    _wait_until_whole(shared)
    # The part that came back does its work, not only its neighbour.
    before = shared.served()
    wait_until(lambda: shared.can_chat() and _all_grew(before, shared.served()), within_s=START_S)


def _wait_until_whole(up: Mesh) -> None:
    urls = [f"{up.summary['envoy']['admin']}/ready"]
    for pod in up.summary["pods"]:
        urls += [f"{pod['url']}/health", f"{pod['sidecar']['admin']}/ready"]
    redis_port = int(re.findall(r":(\d+)", up.summary["redis"]["url"])[-1])
    wait_until(
        lambda: all(map(answers, urls)) and listens(redis_port), within_s=START_S, what="all are ready"
    )


def _all_grew(before: dict[str, float], after: dict[str, float]) -> bool:
    # A pod that was started again counts from zero.
    return all(after[name] > 0 and after[name] != before[name] for name in after)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_everything_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with mesh(tmp_path, "--pods", "1", "--no-envoy") as up:
        assert up.summary["envoy"] is None
        assert up.can_chat()
        up.process.process.send_signal(number)
        assert up.process.process.wait(30) == 0
        assert [name for name, pid in up.pids.items() if is_alive(pid)] == []
        assert list(tmp_path.iterdir()) == []


def test_no_part_outlives_a_killed_mesh(tmp_path: Path) -> None:
    with mesh(tmp_path) as up:
        os.kill(up.process.pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_alive, up.pids.values())), what="every part has died")


def test_a_port_in_use_is_named_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with running([*UP, "--port", str(port)], {"TMPDIR": str(tmp_path)}) as process:
            assert process.process.wait(30) == 64
            assert f"--port: port {port} on {HOST} is in use" in process.text()
    assert list(tmp_path.iterdir()) == []
