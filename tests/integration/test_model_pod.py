"""`python -m model_pod` as its clients meet it: the real `openai` client, raw sockets and signals."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness.processes import free_port, missing

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
START_S = 120  # torch takes seconds to import, and longer from a cold disk
MESSAGES = [{"role": "user", "content": "Tell me about the lock."}]
# Straight to loopback, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FAKE = ("--engine", "fake", "--step-ms", "2")


@dataclass
class Pod:
    process: subprocess.Popen[str]
    url: str
    port: int
    model: str
    client: openai.OpenAI

    def get(self, path: str) -> str:
        with DIRECT.open(self.url + path, timeout=30) as response:
            return response.read().decode()

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        assert found, name
        return float(found[1])


@contextmanager
def running(*args: str, model: str, log: Path) -> Iterator[Pod]:
    command = [sys.executable, "-m", "model_pod", "--listen", "127.0.0.1:0", *args]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    # A pod that hangs while it starts must not hang the tests.
    watchdog = threading.Timer(START_S, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        watchdog.cancel()
        assert line.startswith("ready http://"), log.read_text()
        url = line.split()[1]
        direct = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60, http_client=direct
        ) as client:
            yield Pod(process, url, int(url.rpartition(":")[2]), model, client)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def tiny(cache: Path) -> tuple[str, ...]:
    if find_spec("torch") is None:
        missing("torch is not installed")
    return ("--engine", "transformers", "--tiny", "--threads", "1", "--cache-dir", str(cache))


@pytest.fixture(scope="module", params=["fake", "tiny"])
def pod(request, cache) -> Iterator[Pod]:
    args = FAKE if request.param == "fake" else tiny(cache)
    with running(*args, model=request.param, log=cache / f"{request.param}.log") as started:
        yield started


def ask(pod: Pod, **fields: object):
    return pod.client.chat.completions.create(model=pod.model, messages=MESSAGES, **fields)


def stream(pod: Pod, **fields: object) -> tuple[str, list[openai.types.chat.ChatCompletionChunk]]:
    chunks = list(ask(pod, stream=True, **fields))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks


def test_a_whole_answer(pod):
    answer = ask(pod, max_tokens=12, temperature=0)
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens <= 12
    assert answer.usage.prompt_tokens > 0


def test_a_stream_says_the_same_and_counts_when_asked(pod):
    whole = ask(pod, max_tokens=12, temperature=0)
    text, chunks = stream(pod, max_tokens=12, temperature=0, stream_options={"include_usage": True})
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_completion(pod):
    answer = pod.client.completions.create(model=pod.model, prompt="The keeper", max_tokens=5, temperature=0)
    chunks = list(
        pod.client.completions.create(
            model=pod.model, prompt="The keeper", max_tokens=5, temperature=0, stream=True
        )
    )
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_a_stop_sequence_ends_the_answer_before_itself(pod):
    text = ask(pod, max_tokens=20, temperature=0).choices[0].message.content
    stop = text[len(text) // 2 :][:5]
    cut, chunks = stream(pod, max_tokens=20, temperature=0, stop=[stop, "never to be found"])
    assert cut == text[: text.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_seed_repeats_its_answer_whoever_shares_the_batch(pod):
    alone = stream(pod, max_tokens=24, seed=7)[0]
    crowd = [threading.Thread(target=ask, args=(pod,), kwargs={"max_tokens": 24}) for _ in range(3)]
    for thread in crowd:
        thread.start()
    together = stream(pod, max_tokens=24, seed=7)[0]
    for thread in crowd:
        thread.join()
    assert together == alone
    assert stream(pod, max_tokens=24, seed=8)[0] != alone
    assert stream(pod, max_tokens=24)[0] != alone


def test_a_client_that_leaves_gives_its_slot_back(pod):
    body = json.dumps({"messages": MESSAGES, "stream": True, "max_tokens": 1900, "ignore_eos": True})
    with socket.create_connection(("127.0.0.1", pod.port), timeout=30) as peer:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        peer.sendall((head + body).encode())
        answer = b""
        while b'"content":"' not in answer.partition(b'"content":""')[2]:
            answer += peer.recv(65536)
        assert pod.metric("vllm:num_requests_running") == 1
    made = pod.metric("vllm:generation_tokens_total")
    # A request that is served after the other has gone: the engine has made a step since.
    assert ask(pod, max_tokens=2).usage.completion_tokens == 2
    assert pod.metric("vllm:num_requests_running") == 0
    assert pod.metric("vllm:kv_cache_usage_perc") == 0
    assert pod.metric("vllm:generation_tokens_total") - made < 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"n": 2}, "n"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"logit_bias": {"5": 10}}, "logit_bias"),
    ],
)
def test_a_bad_field_is_named(pod, fields, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(pod, **fields)
    assert caught.value.param == param


def test_an_unknown_model_is_not_found(pod):
    with pytest.raises(openai.NotFoundError) as caught:
        pod.client.chat.completions.create(model="other", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


def test_the_model_is_listed(pod):
    assert [model.id for model in pod.client.models.list()] == [pod.model]


def test_sigterm_lets_an_answer_finish_and_exits_0(tmp_path):
    health = free_port()
    args = (*FAKE, "--grace-s", "30", "--health-listen", f"127.0.0.1:{health}")
    with running(*args, model="fake", log=tmp_path / "log") as pod:
        with grpc.insecure_channel(f"127.0.0.1:{health}") as channel:
            request = health_pb2.HealthCheckRequest(service="fake")
            assert health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status == 1
        with ask(pod, stream=True, max_tokens=100) as chunks:
            next(chunks)
            pod.process.send_signal(signal.SIGTERM)
            assert [*chunks][-1].choices[0].finish_reason == "length"
        assert pod.process.wait(timeout=30) == 0


def test_sigint_cuts_off_what_outlasts_the_grace_and_exits_0(tmp_path):
    with running(*FAKE, "--grace-s", "0", model="fake", log=tmp_path / "log") as pod:
        with ask(pod, stream=True, max_tokens=10_000) as chunks:
            next(chunks)
            pod.process.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="stopping"):
                list(chunks)
        assert pod.process.wait(timeout=30) == 0


def test_sigterm_ends_a_transformers_pod_in_the_middle_of_an_answer(cache):
    with (
        running(*tiny(cache), "--grace-s", "0", model="tiny", log=cache / "stopped.log") as pod,
        ask(pod, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}) as chunks,
    ):
        next(chunks)
        pod.process.send_signal(signal.SIGTERM)
        assert pod.process.wait(timeout=30) == 0


def test_a_port_in_use_is_said_in_one_line(tmp_path):
    with running(*FAKE, model="fake", log=tmp_path / "log") as pod:
        command = [sys.executable, "-m", "model_pod", *FAKE, "--listen", f"127.0.0.1:{pod.port}"]
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert str(pod.port) in second.stderr
    assert "Traceback" not in second.stderr
