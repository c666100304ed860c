"""The official OpenAI client against a sidecar: what passes, what is refused, and when it comes back."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.harness.processes import free_port
from tests.harness.sidecars import (
    HELLO,
    Pod,
    Sidecar,
    ask,
    chat_body,
    fake_pod,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

KEY = "sk-acme"
ACME = {"name": "acme", "key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()], "class": "premium"}
MESSAGES: Any = HELLO


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod("--step-ms", "2") as started:
        yield started


@pytest.fixture(scope="module")
def gate(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """Open to everybody."""
    with sidecar(tmp_path_factory.mktemp("open"), sidecar_settings(pod.port, tenants=[ACME])) as started:
        # Names of models are known once the engine was asked for them.
        started.process.wait_for(
            lambda: started.chat().status == 200 and started.decisions()[0]["model"] == "fake"
        )
        yield started


@pytest.fixture(scope="module")
def narrow(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """One at a time, nobody waits, known callers only."""
    settings = sidecar_settings(
        pod.port,
        unknown_keys="reject",
        tenants=[ACME],
        max_body_bytes=4096,
        admission={"max_in_flight": 1, "max_queue": 0},
    )
    with sidecar(tmp_path_factory.mktemp("narrow"), settings) as started:
        yield started


@contextlib.contextmanager
def occupied(gate: Sidecar, pod: Pod, key: str = KEY) -> Iterator[None]:
    """A stream holds one slot for the block, and for no longer."""
    with gate.client(api_key=key) as client:
        before = gate.metric("headgate_in_flight")
        with client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, max_tokens=20_000
        ) as stream:
            next(iter(stream))
            yield
    gate.wait_for_gauges(in_flight=before)


def test_a_stream_arrives_piece_by_piece_and_whole(gate: Sidecar) -> None:
    with gate.client() as client:
        with client.chat.completions.create(
            model="fake",
            messages=MESSAGES,
            stream=True,
            max_tokens=12,
            seed=7,
            stream_options={"include_usage": True},
        ) as stream:
            chunks = list(stream)
        whole = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=12, seed=7)
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert len(list(filter(None, pieces))) > 1
    assert "".join(piece or "" for piece in pieces) == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 12


def test_a_whole_answer_and_the_decision_about_it(gate: Sidecar) -> None:
    with gate.client(api_key=KEY) as client:
        answer = client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=12)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    decision = gate.decisions()[0]
    assert decision["request_id"] == answer._request_id
    expected = {"tenant": "acme", "class": "premium", "model": "fake", "status": 200, "reason": ""}
    assert expected.items() <= decision.items()


def test_completions_and_models_pass(gate: Sidecar) -> None:
    with gate.client() as client:
        assert client.completions.create(model="fake", prompt="Hello", max_tokens=3).choices[0].text
        assert [model.id for model in client.models.list()] == ["fake"]


def test_an_error_of_the_engine_passes_as_the_engine_wrote_it(gate: Sidecar, pod: Pod) -> None:
    body = chat_body(temperature="hot")
    direct = ask(f"{pod.url}/v1/chat/completions", "POST", body=body)
    with gate.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="fake", messages=MESSAGES, extra_body={"temperature": "hot"})
    assert caught.value.response.content == direct.body
    assert caught.value.param == "temperature"
    assert "x-headgate-reason" not in caught.value.response.headers
    with gate.client() as client, pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="nobody", messages=MESSAGES)


def test_every_proxied_answer_says_who_passed_it_and_where_the_time_went(gate: Sidecar) -> None:
    with gate.client() as client:
        create = client.chat.completions.with_raw_response.create
        named = create(model="fake", messages=MESSAGES, extra_headers={"x-request-id": "mine-1"})
        unnamed = create(model="fake", messages=MESSAGES)
        listed = client.models.with_raw_response.list()
        with pytest.raises(openai.NotFoundError) as caught:
            create(model="nobody", messages=MESSAGES)
        with client.chat.completions.with_streaming_response.create(
            model="fake", messages=MESSAGES, stream=True, max_tokens=2
        ) as streamed:
            streamed.read()
    assert named.headers["x-request-id"] == "mine-1"
    all_headers = [each.headers for each in (named, unnamed, listed, streamed, caught.value.response)]
    assert len({headers["x-request-id"] for headers in all_headers}) == len(all_headers)
    for headers in all_headers:
        assert headers["via"] == "1.1 headgate"
        assert re.fullmatch(
            r"limit;dur=[0-9.]+, queue;dur=[0-9.]+, upstream;dur=[0-9.]+", headers["server-timing"]
        )
    assert float(unnamed.headers["server-timing"].rpartition("=")[2]) > 0


def refused(call: Callable[[openai.OpenAI], object], gate: Sidecar, key: str = KEY) -> openai.APIStatusError:
    """The error that the SDK makes of a refusal."""
    with gate.client(api_key=key) as client, pytest.raises(openai.APIStatusError) as caught:
        call(client)
    error = caught.value
    headers = error.response.headers
    assert error.code == headers["x-headgate-reason"]
    assert error.request_id
    assert headers["server-timing"]
    return error


def chat(client: openai.OpenAI) -> object:
    return client.chat.completions.create(model="fake", messages=MESSAGES, max_tokens=4)


def test_an_unknown_key_is_an_authentication_error(narrow: Sidecar) -> None:
    error = refused(chat, narrow, "sk-nobody")
    assert type(error) is openai.AuthenticationError
    assert error.code == "unauthenticated"
    assert type(refused(lambda client: client.models.list(), narrow, "x")) is openai.AuthenticationError


def test_an_engines_own_administration_is_a_permission_error(narrow: Sidecar) -> None:
    def load(client: openai.OpenAI) -> object:
        return client.post("/load_lora_adapter", body={"lora_name": "x"}, cast_to=object)

    error = refused(load, narrow)
    assert type(error) is openai.PermissionDeniedError
    assert error.code == "forbidden"


def test_a_body_that_is_too_large_names_the_bound(narrow: Sidecar) -> None:
    def long(client: openai.OpenAI) -> object:
        return client.completions.create(model="fake", prompt="x" * 5000)

    error = refused(long, narrow)
    assert (error.status_code, error.code) == (413, "body_too_large")
    assert "4096" in error.message


def test_a_full_pod_is_a_server_error_that_invites_back(narrow: Sidecar, pod: Pod) -> None:
    with occupied(narrow, pod):
        error = refused(chat, narrow)
        # A list of models is no work: it does not wait.
        with narrow.client(api_key=KEY) as client:
            assert [model.id for model in client.models.list()] == ["fake"]
    assert type(error) is openai.InternalServerError
    assert (error.status_code, error.code, error.type) == (503, "queue_full", "server_error")
    headers = error.response.headers
    assert int(headers["retry-after"]) * 1000 >= int(headers["retry-after-ms"]) > 0
    assert headers["x-headgate-elsewhere"] == "1"
    assert "x-should-retry" not in headers


def test_an_engine_that_is_not_there_is_a_server_error(tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(free_port())) as lonely:
        error = refused(chat, lonely)
    assert type(error) is openai.InternalServerError
    assert (error.status_code, error.code) == (502, "connect_failed")


def test_the_client_comes_back_when_it_was_told_to(
    narrow: Sidecar, pod: Pod, caplog: pytest.LogCaptureFixture
) -> None:
    """It sleeps for `retry-after-ms`, says that it comes again, and is served."""
    refusals: list[str] = []

    def note(answer: Any) -> None:
        if answer.status_code == 503:
            refusals.append(answer.headers["retry-after-ms"])

    caplog.set_level(logging.INFO, "openai._base_client")
    with (
        openai.DefaultHttpxClient(event_hooks={"response": [note]}) as http,
        narrow.client(api_key=KEY, max_retries=5, http_client=http) as client,
        ThreadPoolExecutor(1) as thread,
    ):
        with occupied(narrow, pod):
            served = thread.submit(chat, client)
            narrow.process.wait_for(lambda: refusals, what="the first refusal")
        served.result()
    waits = re.findall(r"Retrying request\b.* in ([0-9.]+) seconds", caplog.text)
    assert [round(float(wait) * 1000) for wait in waits] == [int(ms) for ms in refusals]
