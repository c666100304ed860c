"""A sidecar before an engine that is not ours, and knows nothing of us: `transformers serve`."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import HOST, Running, free_port, missing, running
from tests.harness.sidecars import (
    HELLO,
    Reply,
    Sidecar,
    ask,
    chat_body,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

MESSAGES: Any = HELLO
START_S = 180.0  # torch and transformers are imported, and the model is built
TIME = re.compile(rb'"created":[0-9]+')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("foreign")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """The folder of the tiny model; built in a process of its own, so that ours stays without torch."""
    for package in ("torch", "transformers", "fastapi", "uvicorn", "accelerate"):
        if importlib.util.find_spec(package) is None:
            missing(f"`transformers serve` needs {package}")
    build = "import sys, pathlib; from model_pod import tiny; tiny.ensure_tiny(pathlib.Path(sys.argv[1]))"
    with running([sys.executable, "-c", build, folder / "models"]) as builder:
        assert builder.process.wait(START_S) == 0, builder.text()
    (built,) = (folder / "models").iterdir()
    return built


@dataclass
class Engine:
    """A running `transformers serve`."""

    process: Running
    url: str
    model: str  # the only name it answers to


@pytest.fixture(scope="module")
def engine(model: Path, folder: Path) -> Iterator[Engine]:
    port = free_port()
    command = Path(sys.executable).with_name("transformers")
    argv = [str(command), "serve", str(model), "--device", "cpu", "--host", HOST, "--port", str(port)]
    hub = folder / "hub"
    hub.mkdir()
    env = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(hub), "OMP_NUM_THREADS": "1"}
    with running(argv, env) as process:
        process.wait_for_line("Uvicorn running on", within_s=START_S)
        yield Engine(process, f"http://{HOST}:{port}", str(model))


@pytest.fixture(scope="module")
def gate(engine: Engine, folder: Path) -> Iterator[Sidecar]:
    port = int(engine.url.rpartition(":")[2])
    settings = sidecar_settings(port, engine={"health": {"kind": "http", "interval_s": 0.2}})
    with sidecar(folder, settings) as started:
        started.process.wait_for(lambda: ask(f"{started.admin}/ready").status == 200, what="it is ready")
        yield started


def test_streamed_and_whole_are_the_same_answer(gate: Sidecar, engine: Engine) -> None:
    with gate.client() as client:
        create = client.chat.completions.create
        whole = create(model=engine.model, messages=MESSAGES, max_tokens=8, temperature=0)
        with create(
            model=engine.model, messages=MESSAGES, max_tokens=8, temperature=0, stream=True
        ) as stream:
            chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text
    assert text == whole.choices[0].message.content
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 8
    assert chunks[-1].usage == whole.usage
    # It calls its answers by the id that we gave the request.
    assert whole.id == whole._request_id
    decision = gate.decisions()[0]
    assert decision["request_id"] == chunks[0].id
    assert decision["model"] == "other"  # it lists no models


@pytest.mark.parametrize("stream", [False, True])
def test_answers_pass_as_the_engine_wrote_them(gate: Sidecar, engine: Engine, stream: bool) -> None:
    body = chat_body(model=engine.model, max_tokens=4, temperature=0, stream=stream)
    direct, through = both(gate, engine, body)
    assert (direct.status, through.status) == (200, 200)
    assert through.headers["content-type"] == direct.headers["content-type"]
    assert through.headers["via"] == "1.1 headgate"
    # The engine writes the time of day into each.
    assert TIME.sub(b"", through.body) == TIME.sub(b"", direct.body)


def test_what_it_refuses_passes_too(gate: Sidecar, engine: Engine) -> None:
    direct, through = both(gate, engine, chat_body(model="another"))
    assert (direct.status, through.status) == (400, 400)
    assert through.body == direct.body
    assert ask(f"{gate.url}/v1/models").json() == {"object": "list", "data": []}


def both(gate: Sidecar, engine: Engine, body: bytes) -> list[Reply]:
    """The answers without and with a sidecar."""
    headers = {"content-type": "application/json", "x-request-id": "same"}
    urls = (engine.url, gate.url)
    return [ask(f"{url}/v1/chat/completions", "POST", body=body, headers=headers) for url in urls]


def test_a_client_that_leaves_and_an_engine_that_dies(gate: Sidecar, engine: Engine) -> None:
    headers = {"content-type": "application/json"}
    with gate.client() as client:
        stream = client.chat.completions.create(
            model=engine.model, messages=MESSAGES, max_tokens=1500, stream=True
        )
        with stream:
            next(iter(stream))
    gate.wait_for_decision("client_gone")
    gate.wait_for_gauges(in_flight=0, downstream=0)
    assert gate.chat(model=engine.model, headers=headers).status == 200
    engine.process.kill()
    gate.process.wait_for(lambda: ask(f"{gate.admin}/ready").status == 503, what="it is out")
    answer = gate.chat(model=engine.model, headers=headers)
    assert answer.headers["x-headgate-reason"] == "no_endpoint"
