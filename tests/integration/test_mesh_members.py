"""Members of a mesh come and go, lose each other, and meet forgers: real processes, one promise a test."""

import http.server
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

from mesh import gateway
from sidecar.balance.caller import Caller, belongs_to, lines
from tests.harness.meshes import KEY, Member, Mesh, Stream, mesh
from tests.harness.processes import HOST, envoy, free_ports, get, wait_until
from tests.harness.sidecars import (
    Reply,
    ask,
    chat_body,
    frozen,
    replace_text,
    sidecar,
    sidecar_settings,
)

pytestmark = pytest.mark.integration

PATH = "/v1/chat/completions"
SEATS = 32
OLD, NEW = KEY, "the second key of this mesh"


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    with mesh(
        tmp_path_factory.mktemp("mesh"),
        admission={"max_in_flight": SEATS, "queue_timeout_s": 30},
        drain_notice_s=1.5,
        health_listens=True,
    ) as started:
        yield started


@pytest.fixture
def three(healed: Mesh) -> Iterator[Mesh]:
    """As it was found: it recovers from whatever a test does to it."""
    yield healed
    healed.recover()


def failed(streams: list[Stream]) -> list[tuple[int, bytes]]:
    """Those that were not answered whole: there should be none."""
    return [(each.status, each.body[-300:]) for each in streams if not each.end().is_whole]


def all_connected(three: Mesh, connected: bool) -> bool:
    return all(each.gate.metric("headgate_mesh_connected") == connected for each in three.members)


# Who says what he may not.


@contextmanager
def recording() -> Iterator[tuple[int, list[Message]]]:
    """An engine's port, and the heads of what it is asked."""
    heads: list[Message] = []

    class Engine(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            heads.append(self.headers)
            self.send_response(200)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    with http.server.ThreadingHTTPServer((HOST, 0), Engine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port, heads
        finally:
            server.shutdown()
            thread.join()


def words(pod: str, *, key: str = OLD, about: tuple[str, int], request_id: str = "r1") -> dict[str, str]:
    """What a member called `pod` would say; it belongs to a target and the length of a body."""
    caller = Caller(pod, "somebody", "standard", 1.0, "", 0, 0, None, None)
    belongs = belongs_to(b"POST", about[0].encode(), request_id.encode(), about[1])
    head = lines(caller, (key.encode(),), belongs).decode().splitlines()
    return dict(line.split(": ", 1) for line in head) | {"x-request-id": request_id}


def hand(member: Member, headers: dict[str, str]) -> Reply:
    """Ask at the listener for peers."""
    url = f"http://{member.settings['mesh']['listen']}{PATH}"
    return ask(url, "POST", body=chat_body(), headers=headers)


def test_the_meshs_words_are_not_taken_from_callers(three: Mesh, tmp_path: Path) -> None:
    target = (PATH, len(chat_body()))
    with recording() as (port, heads):
        known = three.members[0].settings["mesh"]
        section = known | {"pod": "alone", "listen": f"{HOST}:0", "peers": [known["listen"]]}
        with sidecar(tmp_path, sidecar_settings(port, mesh=section)) as gate:
            answer = gate.chat(headers=words("pod-1", about=target) | {"X-Headgate-Anything": "1"})
            (decision,) = gate.decisions()
    assert answer.status == 200
    assert [name for name in heads[0] if name.lower().startswith("x-headgate")] == []
    assert decision["tenant"] == "anonymous"


@pytest.mark.parametrize(
    ("said", "status", "reason"),
    [
        (lambda about: words("pod-1", about=about), 200, None),
        (lambda about: {}, 403, "forbidden"),
        (lambda about: {"x-headgate-hop": "1", "x-headgate-caller": "pod=pod-1"}, 403, "forbidden"),
        (lambda about: words("pod-1", about=about, key="a key of another mesh"), 403, "forbidden"),
        (lambda about: words("pod-1", about=("/v1/completions", about[1])), 403, "forbidden"),
        (lambda about: words("pod-1", about=(about[0], about[1] + 1)), 403, "forbidden"),
        (lambda about: words("pod-1", about=about) | {"x-request-id": "r2"}, 403, "forbidden"),
        (lambda about: words("pod-0", about=about), 508, "loop"),
        (lambda about: words("pod-1", about=about) | {"x-headgate-hop": "2"}, 508, "loop"),
    ],
    ids=["member", "unsigned", "no key", "wrong key", "another target", "another body", "another request",
         "loop", "second hop"],
)  # fmt: skip
def test_only_a_members_own_words_are_believed(
    three: Mesh, said: Callable[[tuple[str, int]], dict[str, str]], status: int, reason: str | None
) -> None:
    answer = hand(three.members[0], said((PATH, len(chat_body()))))
    assert (answer.status, answer.headers["x-headgate-reason"]) == (status, reason)


def test_keys_are_exchanged_while_work_is_handed_on(three: Mesh) -> None:
    first, *others = three.members
    about = (PATH, len(chat_body()))

    def put(members: list[Member], *keys: str) -> None:
        said = [member.gate.process.text().count("keys have changed") for member in members]
        for member, before in zip(members, said, strict=True):
            replace_text(member.folder / "secret", "\n".join(keys))
            member.gate.process.wait_for(
                lambda member=member, before=before: (
                    member.gate.process.text().count("keys have changed") == before + 1
                ),
                what="it has the new keys",
            )
        handed = first.streams(4, max_tokens=4)
        assert failed(handed) == []
        assert {first.decision(each)["attempts"] for each in handed} == {1}

    first.fault("refuse")
    three.wait_until_seen(first, "down", by=three.members)
    for members in ([first], others):
        put(members, OLD, NEW)
    for members in ([first], others):
        put(members, NEW, OLD)
    for members in (others, [first]):
        put(members, NEW)
    assert hand(others[0], words("pod-0", about=about, key=OLD)).status == 403
    assert hand(others[0], words("pod-0", about=about, key=NEW)).status == 200
    for member in three.members:
        replace_text(member.folder / "secret", OLD)
    first.heal()
    wait_until(lambda: all(hand(each, words("x", about=about)).status == 200 for each in three.members))


# Who leaves.


def test_a_pod_that_drains_loses_nothing_and_hands_on_what_it_has_not_begun(three: Mesh) -> None:
    leaving, *others = three.members
    begun = leaving.streams(SEATS - 4, max_tokens=60)  # some seats are kept for other classes
    for stream in begun:
        stream.begin()
    leaving.fault("slow", factor=20)
    rest = leaving.streams(8, max_tokens=60)
    leaving.wait_until_it_has(len(begun + rest))
    queued = leaving.gate.gauges()["queued"]
    assert queued >= 4
    with ThreadPoolExecutor() as pool:
        drained = pool.submit(ask, f"{leaving.gate.admin}/drain?wait=1", "POST")
        three.wait_until_seen(leaving, "draining")
        assert not leaving.serves()
        assert ask(f"{leaving.gate.admin}/ready").text == "draining\n"
        leaving.gate.wait_for_gauges(queued=0)
        leaving.heal()
        assert failed(begun + rest) == []
        assert (drained.result().status, drained.result().text) == (200, "drained\n")
    assert leaving.gate.process.process.wait(20) == 0
    asked = {each.answer.headers["x-request-id"] for each in rest}
    handed = [each for other in others for each in other.gate.decisions() if each["request_id"] in asked]
    assert len(handed) >= queued
    for other in others:
        wait_until(lambda other=other: leaving.name not in other.sees(), what="it is gone")
    leaving.start_sidecar()


def test_a_pod_that_drains_alone_sends_its_callers_elsewhere(three: Mesh, tmp_path: Path) -> None:
    pod = three.members[0].pod
    with (
        sidecar(tmp_path, sidecar_settings(pod.port, drain_notice_s=30)) as gate,
        gate.asking(max_tokens=8) as held,
        frozen(pod),
    ):
        gate.wait_for_gauges(in_flight=1)
        assert ask(f"{gate.admin}/drain", "POST").status == 202
        answer = gate.chat()
        assert (answer.status, answer.headers["x-headgate-reason"]) == (503, "draining")
        assert (answer.headers["x-headgate-elsewhere"], answer.headers["connection"]) == ("1", "close")
        held.close()


def test_a_sidecar_that_is_killed_is_left_after_a_refused_connection(three: Mesh) -> None:
    dead, asked, other = three.members
    asked.fault("refuse")
    three.wait_until_seen(asked, "down", by=three.members)
    dead.gate.process.kill()
    refusals = 0.0
    for _ in range(40):
        assert failed([asked.stream(max_tokens=1)]) == []
        before, refusals = refusals, asked.gate.metric("headgate_attempts_total", outcome="connect_failed")
        assert refusals <= before + 1
    # Half of them would have gone there, and each pause is twice as long as the one before.
    assert 1 <= refusals <= 6
    assert failed(asked.streams(4) + other.streams(4)) == []
    dead.start_sidecar()


@contextmanager
def gateway_to(three: Mesh, folder: Path) -> Iterator[tuple[int, str]]:
    """Envoy before the mesh, as it is shipped but for quicker checks: its port, and its admin address."""
    listen, admin = (gateway.Address(HOST, port) for port in free_ports(2))
    sidecars = [
        gateway.Sidecar(
            gateway.Address(HOST, each.gate.port), int(each.settings["health_listen"].rpartition(":")[2])
        )
        for each in three.members
    ]
    document = gateway.render(gateway.shipped(), listen=listen, admin=admin, sidecars=sidecars)
    (cluster,) = (one for one in document["static_resources"]["clusters"] if one["name"] == "pods")
    for check in cluster["health_checks"]:
        check.update(interval="0.5s", no_traffic_interval="0.5s")
    file = folder / "envoy.yaml"
    file.write_text(gateway.dump(document), "utf-8")
    with envoy(file, f"http://{admin}"):
        yield listen.port, f"http://{admin}"


def in_rotation(admin: str) -> int:
    """Pods that Envoy sends requests to."""
    page = get(f"{admin}/stats?filter=^cluster.pods.membership_healthy$").decode()
    return int(page.rpartition(":")[2])


def test_a_rolling_restart_under_streams_cuts_and_refuses_nobody(three: Mesh, tmp_path: Path) -> None:
    for member in three.members:
        member.fault("slow", factor=3)
    ended = threading.Event()

    def keep_asking(port: int) -> list[tuple[int, bytes]]:
        bad = []
        while not ended.is_set():
            bad += failed([Stream(port, max_tokens=30)])
        return bad

    with gateway_to(three, tmp_path) as (port, admin), ThreadPoolExecutor(60) as callers:
        wait_until(lambda: in_rotation(admin) == 3, what="Envoy knows all")
        asking = [callers.submit(keep_asking, port) for _ in range(60)]
        try:
            for member in three.members:
                member.gate.process.wait_for(lambda member=member: member.gate.gauges()["in_flight"] > 4)
                assert ask(f"{member.gate.admin}/drain?wait=1", "POST").text == "drained\n"
                assert member.gate.process.process.wait(20) == 0
                member.start_sidecar()
                three.wait_until_seen(member, "serving", by=three.members)
                wait_until(lambda: in_rotation(admin) == 3, what="Envoy knows all")
        finally:
            ended.set()
        assert [each for caller in asking for each in caller.result()] == []


# Who cannot meet.


@pytest.mark.parametrize("how", [signal.SIGSTOP, signal.SIGKILL], ids=lambda how: how.name)
def test_without_redis_an_engine_that_dies_is_left_all_the_same(three: Mesh, how: signal.Signals) -> None:
    broken = three.members[0]
    three.store.send(how)
    wait_until(lambda: all_connected(three, False), what="all know that it is away")
    assert failed([stream for each in three.members for stream in each.streams(2, max_tokens=4)]) == []
    broken.fault("refuse")
    three.wait_until_seen(broken, "down", by=three.members)
    assert failed([stream for each in three.members for stream in each.streams(3, max_tokens=4)]) == []

    if how == signal.SIGSTOP:
        three.store.send(signal.SIGCONT)
    else:
        three.store.start()
    wait_until(lambda: all_connected(three, True), what="all meet again")
    broken.heal()
    three.wait_until_seen(broken, "serving", by=three.members)
    wait_until(broken.serves, what="its engine works for it")


# Who has too much.


def test_a_full_pod_hands_to_one_with_room_and_no_further(tmp_path: Path) -> None:
    full = {"admission": {"max_in_flight": 1, "max_queue": 0}, "mesh": {"spill": "overload"}}
    with mesh(tmp_path, pods=2, **full) as two:
        asked, other = two.members
        held = asked.stream(max_tokens=2000)
        held.begin()
        spilled = asked.stream(max_tokens=4)
        assert failed([spilled]) == []
        assert asked.decision(spilled)["endpoint"] == other.settings["mesh"]["listen"]
        # What has come over is refused where it is, though the pod it came from has room.
        there = hand(asked, words("pod-1", about=(PATH, len(chat_body()))))
        assert (there.status, there.headers["x-headgate-reason"]) == (503, "queue_full")
        assert other.gate.decisions()[0]["status"] == 200
        held.leave()
