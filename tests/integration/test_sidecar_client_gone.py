"""The client leaves: the engine stops, and nothing of the exchange is left, wherever it was."""

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.processes import HOST
from tests.harness.sidecars import HELLO, Pod, Sidecar, fake_pod, sidecar, sidecar_settings

pytestmark = pytest.mark.integration

MESSAGES: Any = HELLO
LONG = 100_000  # tokens: hours


@pytest.fixture(scope="module")
def pod() -> Iterator[Pod]:
    with fake_pod("--kv-tokens", "1000000", "--max-model-len", "200000") as started:
        yield started


@pytest.fixture
def gate(pod: Pod, tmp_path: Path) -> Iterator[Sidecar]:
    """One at a time."""
    with sidecar(tmp_path, sidecar_settings(pod.port, admission={"max_in_flight": 1})) as started:
        yield started


def assert_nothing_is_left(gate: Sidecar, pod: Pod) -> None:
    pod.wait_until_generating(0)
    gate.wait_until_idle()
    decision = gate.decisions()[0]
    assert (decision["status"], decision["reason"]) == (499, "client_gone")
    assert gate.metric("headgate_requests_total", reason="client_gone", status="499") > 0


def test_while_it_waits_in_the_queue(gate: Sidecar, pod: Pod) -> None:
    with gate.asking(max_tokens=LONG):
        gate.wait_for_gauges(in_flight=1)
        with gate.asking(max_tokens=LONG):
            gate.wait_for_gauges(queued=1)
        gate.wait_for_gauges(queued=0, in_flight=1, downstream=1)
        left = gate.wait_for_decision("client_gone")
        assert (left["endpoint"], left["queue_ms"] > 0) == ("", True)
        assert pod.generating() == 1  # nobody was sent for it, and the one who runs is left alone
    assert_nothing_is_left(gate, pod)


def test_the_next_in_the_queue_takes_the_place(gate: Sidecar, pod: Pod) -> None:
    with gate.asking(max_tokens=LONG) as first:
        gate.wait_for_gauges(in_flight=1)
        with gate.asking(max_tokens=LONG) as second, gate.asking(max_tokens=LONG, stream=True) as third:
            gate.wait_for_gauges(queued=2)
            second.close()
            gate.wait_for_gauges(queued=1)
            first.close()
            answer = third.getresponse()  # only now is there room
            assert answer.status == 200
            assert answer.readline().startswith(b"data: ")
            answer.close()
    assert_nothing_is_left(gate, pod)


def test_before_the_first_byte(gate: Sidecar, pod: Pod) -> None:
    with gate.asking(max_tokens=LONG):
        pod.wait_until_generating(1)
    assert_nothing_is_left(gate, pod)
    assert gate.decisions()[0]["upstream_ms"] == 0


def test_in_the_middle_of_a_stream(gate: Sidecar, pod: Pod) -> None:
    with gate.client() as client:
        stream = client.chat.completions.create(
            model="fake", messages=MESSAGES, stream=True, max_tokens=LONG
        )
        with stream:
            next(iter(stream))
            assert pod.generating() == 1
    assert_nothing_is_left(gate, pod)
    assert gate.decisions()[0]["bytes_out"] > 0


def test_in_the_middle_of_its_own_body(gate: Sidecar, pod: Pod) -> None:
    connection = http.client.HTTPConnection(HOST, gate.port, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("content-length", "100000")
        connection.endheaders(b"x" * 5000)
        gate.wait_for_gauges(downstream=1, buffered=5000)
    assert_nothing_is_left(gate, pod)


def test_many_at_once(gate: Sidecar, pod: Pod) -> None:
    with contextlib.ExitStack() as crowd:
        for _ in range(50):
            crowd.enter_context(gate.asking(max_tokens=LONG))
        gate.wait_for_gauges(queued=49, in_flight=1)
    assert_nothing_is_left(gate, pod)
    assert gate.metric("headgate_requests_total", reason="client_gone") == 50
