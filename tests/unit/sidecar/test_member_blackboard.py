"""A pod at its mesh's blackboard: what it says there, and what it makes of what it is told."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from sidecar.balance.blackboard import LEFT, Ejected, Notice, View
from sidecar.balance.blackboard import Member as Known
from sidecar.balance.heartbeat import Heartbeat, decode, encode
from sidecar.member import Member
from tests.harness.clock import run
from tests.harness.wire import CHAT, Wire, post

CONFIG = (
    "redis: {url: 'redis://127.0.0.1:1/0'}\nmesh: {pod: pod-0, listen: '127.0.0.1:0'}\nretry: {mode: 'off'}"
)


class Pod(Wire):
    def __init__(self, more: str = "") -> None:
        super().__init__(f"{CONFIG}\n{more}")
        self.clock.jitter = lambda value, share: value  # type: ignore[method-assign]
        self.lifecycle.serving = True
        self.pass_time()
        config = self.plane.config
        assert config.mesh is not None
        self.member = Member(self.plane, config, config.mesh, None)
        self.plane.hop.keys = self.plane.hop.keys or (b"a-key-of-the-mesh",)
        assert self.member.blackboard is not None
        self.blackboard = self.member.blackboard

    def pass_time(self) -> None:
        self.advance(1.0)
        self.lifecycle.beat = self.clock.now()

    @property
    def hurries(self) -> bool:
        """Since this was asked last."""
        hurried = self.blackboard._hurried
        was = hurried.is_set()
        hurried.clear()
        return was

    def connected(self, monkeypatch: pytest.MonkeyPatch, yes: bool = True) -> None:
        monkeypatch.setattr(type(self.blackboard), "connected", yes)

    def takes(self, *members: Known, **more: Any) -> None:
        self.member._take(view(*members, **more))

    def knows(self) -> dict[str, str]:
        return {pod: peer.state for pod, peer in self.plane.fleet.peers.items()}

    def fails(self, times: int = 5) -> None:
        for _ in range(times):
            self.client() >> post(CHAT)
            self.engine >> b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def says(pod: str, state: str = "serving", age_ms: int = 0, **more: Any) -> Known:
    address = more.pop("address", f"10.0.0.{pod[-1]}:80")
    payload = encode(Heartbeat(pod, address, state, **more))  # type: ignore[arg-type]
    return Known(pod, age_ms, state, 1.0, 0.0, payload)


def view(*members: Known, **more: Any) -> View:
    fields: dict[str, Any] = {
        "at_ms": 1000, "settled": True, "full": False, "ejected": (), "suspects": (), "votes": (), "held": (),
        "origins": 0.0, "retries": 0.0, "secret": "",
    }  # fmt: skip
    return View(members=members, **(fields | more))


class TestWhatItSays:
    def test_its_heartbeat_and_what_it_bears(self) -> None:
        pod = Pod("admission: {max_in_flight: 4}")
        for _ in range(2):
            pod.client() >> post(CHAT)
        said, heartbeat = pod.member._post(), pod.plane.heartbeat()
        assert decode(said.payload) == heartbeat
        assert (said.state, heartbeat.running, heartbeat.utilization) == ("serving", 2, 0.5)
        assert (said.capacity, said.demand) == (heartbeat.capacity, heartbeat.capacity / 2)
        assert (said.votes, said.uneject) == ((), ())

    @pytest.mark.parametrize("state", ["serving", "down", "ejected", "draining"])
    def test_its_state_in_a_word(self, state: str) -> None:
        pod = Pod()
        if state == "down":
            pod.endpoint.healthy = False
        elif state == "ejected":
            pod.endpoint.ejected = True
        elif state == "draining":
            pod.plane.drain()
        assert pod.member._post().state == state

    def test_the_cost_of_attempts_is_said_once(self) -> None:
        pod = Pod()
        pod.client() >> post(CHAT)
        said = pod.member._post()
        assert (said.origins > 0, said.retries) == (True, 0.0)
        assert pod.member._post().origins == 0.0

    def test_many_long_names_leave_room_for_the_rest(self) -> None:
        pod = Pod()
        names = [f"{'m' * 240}{n}" for n in range(32)]
        pod.catalog.load(msgspec.json.encode({"data": [{"id": name} for name in names]}))
        payload = pod.member._post().payload
        assert len(payload) <= 4096
        assert len(decode(payload).models) > 8

    def test_votes_and_what_is_to_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pod = Pod()
        pod.takes(says("pod-1"), says("pod-2"))
        pod.pass_time()
        pod.fails()
        assert pod.endpoint.ejected, "it does not answer: we decide"
        pod = Pod()
        pod.takes(says("pod-1"), says("pod-2"))
        pod.connected(monkeypatch)
        assert not pod.hurries
        pod.fails()
        assert not pod.endpoint.ejected
        assert pod.hurries
        assert [vote.pod for vote in pod.member._post().votes] == ["pod-0"]
        ticket = Ejected("pod-0", 60_000, "consecutive_5xx", ("pod-0",), "")
        pod.takes(says("pod-1"), votes=(("pod-0", "granted"),), ejected=(ticket,))
        assert pod.endpoint.ejected
        assert pod.member._post().votes == ()
        pod.plane.judge.configure(pod.plane.config.outlier)
        assert pod.member._post().uneject == ("pod-0",)


class TestViews:
    def test_members_are_known_and_we_are_no_peer(self) -> None:
        pod = Pod()
        pod.takes(says("pod-0"), says("pod-1", models=("a",)), says("pod-2", "down", why="lost"))
        assert pod.knows() == {"pod-1": "serving", "pod-2": "down"}
        assert pod.plane.fleet.peers["pod-1"].models == {"a"}
        assert pod.plane.fleet.models == frozenset(pod.catalog.labels())

    def test_what_was_said_a_while_ago_is_no_newer_than_that(self) -> None:
        pod = Pod()
        pod.takes(says("pod-1", waiting=1, pace=(1, 0.1, 0, 0.0)))
        pod.takes(says("pod-1", waiting=2, age_ms=1500, pace=(1, 0.2, 0, 0.0)))
        assert pod.plane.fleet.peers["pod-1"].waits == 1
        assert [pace.start for pace in pod.plane.judge._peers_paces(pod.clock.now())] == [0.1]
        pod = Pod()
        pod.takes(says("pod-1", age_ms=3000, pace=(1, 0.1, 0, 0.0)))
        assert pod.plane.judge._peers_paces(pod.clock.now()) == []

    def test_who_is_missing_is_gone_once_that_is_certain(self) -> None:
        pod = Pod()
        pod.takes(says("pod-1"), says("pod-2"))
        pod.takes(says("pod-2"), settled=False)
        assert pod.knows().keys() == {"pod-1", "pod-2"}
        pod.takes(says("pod-2"))
        assert pod.knows().keys() == {"pod-2"}

    def test_who_cannot_be_read_is_none(self, caplog: pytest.LogCaptureFixture) -> None:
        pod = Pod()
        pod.takes(Known("pod-1", 0, "serving", 1.0, 0.0, b"?"), says("pod-2"), says("pod-3", address=""))
        assert pod.knows().keys() == {"pod-2"}
        assert "peer pod-1" in caplog.text

    @pytest.mark.parametrize("whose", ["pod-0", "pod-2"])
    def test_nobody_speaks_for_another(self, whose: str) -> None:
        pod = Pod()
        said = says(whose, address="10.6.6.6:80")
        pod.takes(says("pod-2"), Known("pod-1", 0, "serving", 1.0, 0.0, said.payload))
        assert {each: peer.host for each, peer in pod.plane.fleet.peers.items()} == {"pod-2": "10.0.0.2"}

    def test_the_meshs_retries_bound_ours(self) -> None:
        pod = Pod()
        pod.plane.retries.deposit(1000.0, pod.clock.now())
        pod.takes(origins=100.0, retries=30.0)
        assert not pod.plane.retries.withdraw(1.0, pod.clock.now())
        pod.takes(origins=100.0, retries=5.0)
        assert pod.plane.retries.withdraw(1.0, pod.clock.now())

    def test_the_key_is_the_meshs(self, tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
        pod = Pod()
        pod.plane.hop.keys = ()
        assert pod.plane.hop.keys == ()
        pod.takes()
        assert pod.plane.hop.keys == ()
        pod.takes(secret="the mesh's secret")
        assert pod.plane.hop.keys == (b"the mesh's secret",)
        (tmp_path / "secret").write_bytes(b"a key of our own")
        pod = Pod()
        assert pod.plane.config.mesh is not None
        mesh = msgspec.structs.replace(pod.plane.config.mesh, secret_file=str(tmp_path / "secret"))
        pod.member = Member(pod.plane, pod.plane.config, mesh, None)
        pod.takes(secret="the mesh's secret")
        assert pod.plane.hop.keys == (b"a key of our own",)
        assert "secret_file is absent" in caplog.text
        assert "the mesh's secret" not in caplog.text


class TestNotices:
    def test_of_who_has_left_and_who_has_changed(self) -> None:
        pod = Pod()
        pod.takes(says("pod-1"), says("pod-2"))
        pod.member._hear(Notice(at_ms=1001, member=Known("pod-1", 0, LEFT, 0.0, 0.0, b"")))
        pod.member._hear(Notice(at_ms=1002, member=says("pod-2", "draining")))
        pod.member._hear(Notice(at_ms=1003, member=says("pod-3")))
        assert pod.knows() == {"pod-2": "draining", "pod-3": "serving"}

    def test_of_tickets_unless_they_are_older_than_the_view(self) -> None:
        pod = Pod()
        pod.takes(says("pod-1"), says("pod-2"), at_ms=1000)
        ticket = Ejected("pod-1", 60_000, "slow_tokens", ("pod-2",), "")
        peer = pod.plane.fleet.peers["pod-1"]
        pod.member._hear(Notice(at_ms=999, ejected=(ticket,)))
        assert not peer.ejected
        pod.member._hear(Notice(at_ms=1000, ejected=(ticket,)))
        assert peer.ejected
        pod.member._hear(Notice(at_ms=1001, ejected=()))
        assert not peer.ejected

    def test_a_change_of_state_is_told_at_once(self) -> None:
        pod = Pod()
        pod.pass_time()
        assert pod.hurries, "it serves"
        pod.advance(0.5)
        assert not pod.hurries
        pod.endpoint.healthy = False
        pod.advance(0.25)
        assert pod.hurries


def test_alone_is_who_has_a_blackboard_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pod = Pod()
    assert pod.member._is_alone()
    pod.connected(monkeypatch)
    assert not pod.member._is_alone()
    config = Wire("mesh: {pod: pod-0, peers: ['10.0.0.1:80'], secret_file: unread}").plane.config
    assert config.mesh is not None
    mesh = msgspec.structs.replace(config.mesh, secret_file=None)
    member = Member(pod.plane, config, mesh, None)
    assert not member._is_alone(), "it asks those that are listed, and no others"
    run(member.leave())
    member.configure(config, moved=False)
    pod.plane.changed()
    assert not pod.plane.judge.asks()


class Server:
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[Sequence[bytes]] = []
        self.closed = 0

    async def run(self, arguments: Sequence[bytes]) -> list[Any]:
        self.asked.append(arguments)
        return []

    async def close(self) -> None:
        self.closed += 1


def test_it_takes_its_leave() -> None:
    pod, server = Pod(), Server()
    pod.blackboard._script = lambda: server
    run(pod.member.leave())
    (arguments,) = server.asked
    ask = msgspec.msgpack.decode(arguments[2])
    assert (ask["pod"], ask["leave"], server.closed) == ("pod-0", True, 1)


class TestReload:
    def test_its_terms(self) -> None:
        pod = Pod()
        assert pod.blackboard.terms.longest_ms == 335_000
        before = pod.blackboard._script
        more = "outlier: {max_ejection_percent: 30, max_ejection_time_s: 100, max_ejection_time_jitter_s: 1}"
        config = Wire(f"{CONFIG}\n{more}").plane.config
        pod.member.configure(config, moved=False)
        terms = pod.blackboard.terms
        assert (terms.max_percent, terms.longest_ms, terms.max_replicas) == (30, 131_000, 256)
        assert pod.blackboard._script is before

    def test_another_redis(self) -> None:
        pod = Pod()
        before = pod.blackboard._script
        pod.member.configure(pod.plane.config, moved=True)
        assert pod.blackboard._script is not before
        assert pod.hurries
