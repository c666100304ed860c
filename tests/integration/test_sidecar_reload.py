"""A new configuration under load: in force whole or not at all, and no request notices."""

import contextlib
import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml

from tests.harness.processes import free_port
from tests.harness.sidecars import (
    HELLO,
    Pod,
    Settings,
    Sidecar,
    ask,
    chat_body,
    fake_pod,
    replace_text,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

KEY = "sk-acme"
ACME = {"name": "acme", "key_sha256": [hashlib.sha256(KEY.encode()).hexdigest()], "class": "premium"}
MESSAGES: Any = HELLO
CALLERS = 4
# About 50 requests a second of all callers together.
STEP_MS, ANSWER_TOKENS = 20, 4
IN_FORCE = "the new configuration is in force"
REFUSED = "the old one stays in force"


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod("--step-ms", str(STEP_MS)) as started:
        yield started


class Load:
    """Callers who ask one thing after the other, and remember what went wrong."""

    def __init__(self, gate: Sidecar) -> None:
        self._gate = gate
        self._stop = threading.Event()
        self.answers: list[str] = []
        self.failures: list[str] = []

    def call(self) -> None:
        with self._gate.client(api_key="sk-load") as client:
            while not self._stop.is_set():
                try:
                    stream = client.chat.completions.create(
                        model="fake", messages=MESSAGES, stream=True, max_tokens=ANSWER_TOKENS
                    )
                    self.answers.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
                except openai.APIError as error:
                    self.failures.append(repr(error))

    def goes_on(self) -> None:
        """Wait for enough answers that most of them began after now."""
        until = len(self.answers) + 4 * CALLERS
        self._gate.process.wait_for(
            lambda: self.failures or len(self.answers) >= until, what="the load goes on"
        )

    def stop(self) -> None:
        self._stop.set()


@contextlib.contextmanager
def load(gate: Sidecar) -> Iterator[Load]:
    """Requests all the time; at the end none may have failed."""
    made = Load(gate)
    callers = [threading.Thread(target=made.call) for _ in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        made.goes_on()
        yield made
        made.goes_on()
    finally:
        made.stop()
        for caller in callers:
            caller.join()
    assert made.failures == []
    assert {len(text) for text in made.answers} == {ANSWER_TOKENS * 4}


def tenant_of(gate: Sidecar, key: str) -> str:
    """Whom the sidecar takes the owner of `key` for."""
    gate.chat(headers={"authorization": f"Bearer {key}", "x-request-id": (mine := os.urandom(8).hex())})
    return next(str(each["tenant"]) for each in gate.decisions() if each["request_id"] == mine)


def too_large(gate: Sidecar) -> bool:
    """Whether 2 KB are more than a body may have."""
    return gate.chat(messages=[{"role": "user", "content": "x" * 2048}]).status == 413


def count(gate: Sidecar, line: str) -> int:
    return gate.process.text().count(line)


def hang_up(gate: Sidecar) -> None:
    gate.process.process.send_signal(signal.SIGHUP)


def test_a_change_under_load_fails_no_request(pod: Pod, tmp_path: Path) -> None:
    settings = sidecar_settings(pod.port)
    with sidecar(tmp_path, settings) as gate, load(gate) as callers:
        assert (tenant_of(gate, KEY), too_large(gate)) == ("anonymous", False)
        # Back and forth: whoever is under way when it changes keeps what it started with.
        for changes in range(1, 6):
            gate.write(settings | {"tenants": [ACME], "max_body_bytes": 1024 + changes})
            hang_up(gate)
            gate.process.wait_for(lambda n=changes: count(gate, IN_FORCE) == n, what="it is in force")  # type: ignore[misc]
            callers.goes_on()
        assert (tenant_of(gate, KEY), too_large(gate)) == ("acme", True)
        assert yaml.safe_load(ask(f"{gate.admin}/debug/config").text)["max_body_bytes"] == 1029


def test_a_config_map_is_noticed_by_itself(pod: Pod, tmp_path: Path) -> None:
    """Kubernetes writes a folder beside the old one, and swaps one symlink."""
    settings = sidecar_settings(pod.port)
    swap(tmp_path, "1", settings)
    (tmp_path / "sidecar.yaml").symlink_to("..data/sidecar.yaml")
    with sidecar(tmp_path, settings) as gate, load(gate):
        assert tenant_of(gate, KEY) == "anonymous"
        swap(tmp_path, "2", settings | {"tenants": [ACME]})
        gate.process.wait_for_line(IN_FORCE)
        assert tenant_of(gate, KEY) == "acme"
        swap(tmp_path, "3", settings)
        gate.process.wait_for(lambda: count(gate, IN_FORCE) == 2, what="the second change")
        assert tenant_of(gate, KEY) == "anonymous"


def swap(volume: Path, version: str, settings: Settings) -> None:
    folder = volume / f"..{version}"
    folder.mkdir()
    (folder / "sidecar.yaml").write_text(yaml.safe_dump(settings))
    (volume / "..data_tmp").symlink_to(folder.name)
    os.replace(volume / "..data_tmp", volume / "..data")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"admission": {"max_in_flight": "many"}}, "admission.max_in_flight: expected a whole number"),
        ({"tenants": [ACME, {"nmae": "x"}]}, "tenants[1].nmae: unknown key; did you mean name?"),
        ({"timeouts": {"stall_s": -1}}, "timeouts.stall_s: expected seconds above 0"),
        ("engine: [", "line 2, column 1"),
        ("", "engine: is required"),
    ],
    ids=["wrong type", "unknown key", "out of range", "not YAML", "empty"],
)
def test_a_broken_file_changes_nothing(shared: Sidecar, content: Any, complaint: str) -> None:
    broken = content if isinstance(content, str) else yaml.safe_dump(shared.settings | content)
    complaints, changes = count(shared, REFUSED), count(shared, IN_FORCE)
    replace_text(shared.file, broken)
    hang_up(shared)
    shared.process.wait_for(lambda: count(shared, REFUSED) == complaints + 1, what="a complaint")
    assert complaint in shared.process.text().rpartition(REFUSED)[2]
    assert tenant_of(shared, KEY) == "acme"
    # Mended, it is taken.
    shared.write(shared.settings | {"max_body_bytes": 4096 + changes})
    hang_up(shared)
    shared.process.wait_for(lambda: count(shared, IN_FORCE) == changes + 1, what="it is in force")
    assert tenant_of(shared, KEY) == "acme"


@pytest.fixture(scope="module")
def shared(pod: Pod, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """Knows the tenant acme, and reads its file again and again."""
    settings = sidecar_settings(pod.port, tenants=[ACME])
    with sidecar(tmp_path_factory.mktemp("shared"), settings) as gate:
        yield gate


@pytest.mark.parametrize("key", ["listen", "admin", "health_listen", "mesh"])
def test_what_needs_a_restart_says_so(shared: Sidecar, key: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    value = {"pod": "pod-0"} if key == "mesh" else address
    redis = {"redis": {"url": "redis://127.0.0.1:1/0"}} if key == "mesh" else {}
    shared.write(shared.settings | redis | {key: value, "tenants": []})
    hang_up(shared)
    shared.process.wait_for_line(f"the new configuration is refused: a change of {key} needs a restart")
    assert tenant_of(shared, KEY) == "acme"


def test_a_signal_without_a_change_is_heard(pod: Pod, tmp_path: Path) -> None:
    with sidecar(tmp_path, sidecar_settings(pod.port)) as gate:
        hang_up(gate)
        gate.process.wait_for_line("the configuration has not changed")


def test_a_higher_limit_lets_the_queue_in(pod: Pod, tmp_path: Path) -> None:
    settings = sidecar_settings(pod.port, admission={"max_in_flight": 1})
    with sidecar(tmp_path, settings) as gate, gate.asking(max_tokens=20_000):
        gate.wait_for_gauges(in_flight=1)
        with gate.asking(max_tokens=20_000):
            gate.wait_for_gauges(queued=1)
            gate.write(settings | {"admission": {"max_in_flight": 2}})
            hang_up(gate)
            gate.process.wait_for_line(IN_FORCE)
            assert gate.gauges().items() >= {"in_flight": 2, "queued": 0}.items()


def test_the_engine_can_move_under_load(pod: Pod, tmp_path: Path) -> None:
    settings = sidecar_settings(pod.port)
    with (
        fake_pod("--step-ms", str(STEP_MS)) as other,
        sidecar(tmp_path, settings) as gate,
        load(gate) as callers,
    ):
        gate.write(settings | {"engine": {"address": f"127.0.0.1:{other.port}"}})
        hang_up(gate)
        gate.process.wait_for_line(IN_FORCE)
        callers.goes_on()
        pod.wait_until_generating(0)
        body = ask(f"{gate.url}/v1/chat/completions", "POST", body=chat_body())
        assert body.status == 200
        assert gate.decisions()[0]["endpoint"] == f"127.0.0.1:{other.port}"
