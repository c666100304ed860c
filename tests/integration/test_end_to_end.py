"""The whole way: OpenAI's client, Envoy, a sidecar, and a transformers model that really computes."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.harness.processes import Running, envoy_binary, free_port, running, valkey_binary, wait_until
from tests.harness.sidecars import HELLO, ask, metric

pytestmark = pytest.mark.integration

MODEL = "tiny"
MESSAGES: Any = HELLO
CONTEXT = 2048  # tokens the model holds
START_S = 180.0  # torch is imported, and the model is built


@dataclass
class Mesh:
    """One pod behind Envoy."""

    process: Running
    url: str
    engine: str
    admin: str

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0, timeout=60)

    def decision(self, request_id: str) -> dict[str, Any]:
        """What the sidecar says about an exchange that has ended."""

        def find() -> dict[str, Any] | None:
            decisions = ask(f"{self.admin}/debug/decisions").json()
            return next((each for each in decisions if each["request_id"] == request_id), None)

        found = self.process.wait_for(find, what=f"the decision about {request_id}")
        assert found is not None
        return found


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    envoy_binary()
    valkey_binary()
    folder = str(tmp_path_factory.mktemp("up"))
    argv = [sys.executable, "-m", "mesh", "up", "--engine", "transformers", "--pods", "1", "--json"]
    argv += ["--port", str(free_port())]
    with running(argv, {"TMPDIR": folder, "XDG_CACHE_HOME": folder}) as process:
        summary = json.loads(process.wait_for_line('{"url"', within_s=START_S))
        (pod,) = summary["pods"]
        started = Mesh(process, summary["url"], pod["url"], pod["sidecar"]["admin"])
        # Envoy sends nothing before its first health check.
        process.wait_for(lambda: ask(f"{started.url}/v1/models").status == 200, what="the gateway is open")
        yield started


def test_streamed_and_whole_are_the_same_answer(mesh: Mesh) -> None:
    with mesh.client() as client:
        create = client.chat.completions.create
        whole = create(model=MODEL, messages=MESSAGES, max_tokens=16, temperature=0)
        with create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=16,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len(list(filter(None, pieces))) > 1
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 16 < whole.usage.prompt_tokens + 16


def test_who_handled_it_is_known_on_both_ends(mesh: Mesh) -> None:
    with mesh.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            model=MODEL, messages=MESSAGES, max_tokens=2, extra_headers={"x-forwarded-for": "203.0.113.9"}
        )
        assert [model.id for model in client.models.list()] == [MODEL]
    assert raw.headers["via"] == "1.1 headgate"
    assert raw.headers["server-timing"].startswith("limit;dur=")
    decision = mesh.decision(raw.headers["x-request-id"])
    expected = {"status": 200, "reason": "", "model": MODEL, "path": "/v1/chat/completions"}
    assert expected.items() <= decision.items()
    assert decision["client"] not in ("", "203.0.113.9")  # what Envoy saw, not what the caller said


def test_an_error_of_the_engine_comes_through(mesh: Mesh) -> None:
    with mesh.client() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=2 * CONTEXT)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.PermissionDeniedError) as refused:
            client.post("/load_lora_adapter", body={}, cast_to=object)
        assert refused.value.code == "forbidden"


def test_a_client_that_leaves_frees_the_engine(mesh: Mesh) -> None:
    def aborted() -> float:
        return metric(mesh.engine, "vllm:request_success_total", finished_reason="abort")

    def generating() -> float:
        return metric(mesh.engine, "vllm:num_requests_running")

    before = aborted()
    with mesh.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=CONTEXT - 64,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        with stream:
            next(iter(stream))
            assert generating() == 1
            request_id = stream.response.headers["x-request-id"]
    wait_until(lambda: generating() == 0, what="the slot is free")
    # It did not come to its end meanwhile.
    wait_until(lambda: aborted() == before + 1, what="it was broken off")
    assert mesh.decision(request_id)["reason"] == "client_gone"
    assert metric(mesh.admin, "headgate_in_flight") == 0
