"""What the gateway does with refusals and failures: real Envoy, its shipped configuration.

The pods are stand-ins, because the subject is Envoy's configuration and each test needs pods that answer
exactly as it says: what a real sidecar refuses would depend on its own load.
"""

import asyncio
import contextlib
import dataclasses
import ipaddress
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from mesh import gateway
from mesh.gateway import Address
from sidecar import errors
from sidecar.errors import Refusal
from tests.harness.processes import HOST, Running, envoy, free_ports, get
from tests.harness.standin_pods import Answer, StandinPod, healthy, serving, standin_pods

pytestmark = pytest.mark.integration

PATH = "/v1/chat/completions"
# Other statuses never count.
SERVER_ERRORS = [each for each in vars(errors).values() if isinstance(each, Refusal) and each.status >= 500]
# What says that the engine behind a sidecar is broken, or the sidecar itself.
FAULTS = {
    "connect_failed",
    "upstream_reset",
    "upstream_protocol",
    "first_token_timeout",
    "stalled",
    "internal",
}


async def serve(request: web.Request) -> web.Response:
    """A pod that takes its time, so that requests overlap as they do in front of a GPU."""
    body = await request.read()
    await asyncio.sleep(0.05)
    return web.json_response({"received": len(body)})


def refusing(refusal: Refusal) -> Answer:
    """A pod whose sidecar answers everything with this row of its table."""
    headers = {"x-headgate-reason": refusal.reason}
    if refusal.elsewhere:
        headers |= {"x-headgate-elsewhere": "1", "retry-after": "1"}

    async def refuse(_: web.Request) -> web.Response:
        return web.json_response({"error": {"code": refusal.reason}}, status=refusal.status, headers=headers)

    return refuse


refuse = refusing(errors.OVERLOADED)


async def break_down(_: web.Request) -> web.Response:
    """An engine's own fault."""
    return web.Response(status=500)


async def hang_up(request: web.Request) -> web.Response:
    """A pod that dies after it has read the request."""
    await request.read()
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


class Gateway:
    """A running Envoy."""

    def __init__(self, url: str, admin: str, process: Running) -> None:
        self.url = url
        self._admin = admin
        self._process = process

    def stats(self) -> dict[str, int]:
        """The counters and gauges of the cluster of pods."""
        text = get(f"{self._admin}/stats?format=json&filter=^cluster.pods.")
        return {
            stat["name"].removeprefix("cluster.pods."): stat["value"]
            for stat in json.loads(text)["stats"]
            if "name" in stat
        }

    def access_log(self) -> list[dict[str, object]]:
        """All records; Envoy writes the last of them when it ends."""
        self._process.end()
        return [json.loads(line) for line in self._process.text().splitlines() if line.startswith("{")]


@contextlib.contextmanager
def running_gateway(pods: Sequence[StandinPod], folder: Path) -> Iterator[Gateway]:
    listen, admin = (Address(HOST, port) for port in free_ports(2))
    sidecars = [pod.sidecar for pod in pods]
    document = gateway.render(gateway.shipped(), listen=listen, admin=admin, sidecars=sidecars)
    file = folder / "envoy.yaml"
    file.write_text(gateway.dump(document), "utf-8")
    with healthy(pods), envoy(file, f"http://{admin}") as process:
        yield Gateway(f"http://{listen}", f"http://{admin}", process)


async def post_all(url: str, pods: Sequence[StandinPod], count: int, body: bytes) -> Counter[int]:
    """`count` requests at once; how often each status was answered."""
    connector = aiohttp.TCPConnector(limit=0)
    async with serving(pods), aiohttp.ClientSession(connector=connector) as client:

        async def post() -> int:
            async with client.post(url + PATH, data=BytesIO(body)) as answer:
                await answer.read()
                return answer.status

        return Counter(await asyncio.gather(*(post() for _ in range(count))))


@pytest.mark.parametrize("refusing", [1, 2])
def test_pods_that_refuse_everything_eject_nobody_and_no_caller_sees_a_503(
    refusing: int, tmp_path: Path
) -> None:
    pods = standin_pods([refuse] * refusing + [serve] * (4 - refusing))
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 400, b"{}"))
        stats = running.stats()
    assert statuses == {200: 400}
    # Many more in a row than eject a pod, or nothing was shown.
    assert all(len(pod.heads) > 20 for pod in pods[:refusing])
    assert stats["outlier_detection.ejections_active"] == 0
    assert stats["outlier_detection.ejections_enforced_total"] == 0
    assert stats["upstream_rq_retry_overflow"] == 0


def test_a_refused_request_takes_its_whole_body_to_the_next_pod(tmp_path: Path) -> None:
    pods = standin_pods([refuse, serve])
    body = bytes(16 * 1024 * 1024)
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 8, body))
    assert statuses == {200: 8}
    assert len(pods[0].heads) > 0


def test_a_pod_that_fails_by_itself_is_ejected(tmp_path: Path) -> None:
    pods = standin_pods([break_down, serve])
    with running_gateway(pods, tmp_path) as running:
        asyncio.run(post_all(running.url, pods, 50, b"{}"))
        stats = running.stats()
    assert stats["outlier_detection.ejections_active"] == 1


def test_a_pod_whose_engine_cannot_be_reached_is_ejected_and_no_caller_notices(tmp_path: Path) -> None:
    pods = standin_pods([refusing(errors.CONNECT_FAILED), serve])
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 50, b"{}"))
        stats = running.stats()
    assert statuses == {200: 50}
    assert len(pods[0].heads) > 0
    assert stats["outlier_detection.ejections_active"] == 1


@pytest.mark.parametrize("refusal", SERVER_ERRORS, ids=lambda refusal: refusal.reason)
def test_only_a_reason_that_is_a_fault_ejects(refusal: Refusal, tmp_path: Path) -> None:
    pods = standin_pods([refusing(dataclasses.replace(refusal, elsewhere=False)), serve])
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 50, b"{}"))
        stats = running.stats()
    assert statuses[refusal.status] >= 5, "enough in a row, or nothing was shown"
    assert stats["outlier_detection.ejections_active"] == (refusal.reason in FAULTS)


def test_a_request_that_may_have_run_is_not_repeated(tmp_path: Path) -> None:
    pods = standin_pods([hang_up, hang_up])
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 1, b"{}"))
    assert statuses == {503: 1}
    assert sum(len(pod.heads) for pod in pods) == 1


async def ask(
    url: str, pods: Sequence[StandinPod], headers: dict[str, str], target: str = PATH
) -> aiohttp.ClientResponse:
    async with (
        serving(pods),
        aiohttp.ClientSession() as client,
        client.post(url + target, data=b"{}", headers=headers) as answer,
    ):
        await answer.read()
        return answer


def test_the_meshs_own_words_are_not_taken_from_clients(tmp_path: Path) -> None:
    pods = standin_pods([serve])
    claims = {
        "x-headgate-hop": "1",
        "X-Headgate-Anything": "1",
        "x-request-start": "t=1.000",
        "x-forwarded-for": "203.0.113.7",
        "x-request-id": "the-callers-own",
    }
    with running_gateway(pods, tmp_path) as running:
        answer = asyncio.run(ask(running.url, pods, claims))
    (head,) = pods[0].heads
    assert [name for name in head if name.startswith("x-headgate")] == []
    seconds = head["x-request-start"].removeprefix("t=")
    assert float(seconds) > 1.7e9
    # What the client claims is kept, and the peer's own address stands last, where trust in one proxy looks
    # for it. Which of its addresses the machine shows for a peer on loopback is Envoy's choice.
    claimed, _, peer = head["x-forwarded-for"].partition(",")
    assert claimed == "203.0.113.7"
    assert ipaddress.ip_address(peer)
    assert head["x-request-id"] == answer.headers["x-request-id"] == "the-callers-own"
    assert answer.headers["server"] == "headgate"


def test_the_access_log_says_what_happened_and_no_secret(tmp_path: Path) -> None:
    pods = standin_pods([refuse])
    with running_gateway(pods, tmp_path) as running:
        target = f"{PATH}?api-key=secret"
        asyncio.run(ask(running.url, pods, {"authorization": "Bearer secret"}, target))
        (record,) = running.access_log()
    assert "secret" not in json.dumps(record)
    assert record["path"] == PATH
    assert record["status"] == 503
    assert record["reason"] == "overloaded"
    assert record["attempts"] == 1


def test_each_pod_is_asked_once_and_then_the_caller_is_told(tmp_path: Path) -> None:
    pods = standin_pods([refuse, refuse])
    with running_gateway(pods, tmp_path) as running:
        statuses = asyncio.run(post_all(running.url, pods, 1, b"{}"))
    assert statuses == {503: 1}
    assert [len(pod.heads) for pod in pods] == [1, 1]


def test_without_any_pod_the_answer_says_so_in_openais_shape(tmp_path: Path) -> None:
    with running_gateway([], tmp_path) as running:
        answer, body = asyncio.run(ask_nobody(running.url))
    assert answer.status == 503
    assert answer.headers["x-headgate-reason"] == "no_endpoint"
    assert answer.headers["retry-after"] == "1"
    assert body["error"]["type"] == "gateway_error"
    assert body["error"]["param"] is None


async def ask_nobody(url: str) -> tuple[aiohttp.ClientResponse, dict[str, dict[str, object]]]:
    async with aiohttp.ClientSession() as client, client.post(url + PATH, data=b"{}") as answer:
        return answer, await answer.json()
