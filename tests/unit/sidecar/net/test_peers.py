"""Asking peers how they are: whom, how often, and what is made of their answers."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest

from sidecar.balance.caller import belongs_to, read
from sidecar.balance.endpoint import Endpoint
from sidecar.balance.fleet import Fleet
from sidecar.balance.heartbeat import MAX_BYTES, Heartbeat, encode
from sidecar.errors import MALFORMED, ProtocolError
from sidecar.http1.request import FIELDS
from sidecar.http1.response import ResponseHead, ResponseReader
from sidecar.net.peers import Peers
from sidecar.stages.hop import Hop
from sidecar.values import Address
from tests.harness.clock import FakeClock, run
from tests.harness.engine import answer

KEYS = (b"first-key-of-the-mesh",)
PATH = "/.headgate/heartbeat"
ONE, TWO = Address("10.0.0.1", 80), Address("pod-2.pods", 81)

Said = bytes | Exception | int  # a heartbeat, a failure, or another status


class Rig:
    """A sidecar whose peers say what `says` has for their address; nothing for others."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *listed: Address) -> None:
        self.clock = FakeClock()
        self.fleet = Fleet(Endpoint("127.0.0.1", 8000), lambda: 0.0)
        self.hop = Hop("pod-0", self.clock, lambda: b"")
        self.hop.keys = KEYS
        self.says: dict[Address, Said] = {}
        self.asked: list[Address] = []
        self.lines: list[bytes] = []
        self.under_way = self.most = 0
        self.alone = False
        self.peers = Peers(
            self.fleet,
            self.hop,
            PATH,
            self.clock,
            listed,
            lambda: self.alone,
            lambda heartbeat: self.fleet.hear(heartbeat, self.clock.now()),
        )
        monkeypatch.setattr("sidecar.net.peers.get", self._get)

    async def _get(
        self, address: Address, path: str, timeout_s: float, most: int, lines: bytes
    ) -> tuple[ResponseHead, bytes]:
        assert (path, timeout_s, most) == (PATH, 1.0, MAX_BYTES)
        self.asked.append(address)
        self.lines.append(lines)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(0.01)
        self.under_way -= 1
        said = self.says.get(address, ConnectionRefusedError())
        if isinstance(said, Exception):
            raise said
        status, body = (said, b"") if isinstance(said, int) else (200, said)
        return head(status), body

    def rounds(self, count: int) -> list[Address]:
        """Who is asked in so many rounds."""

        async def main() -> None:
            task = asyncio.ensure_future(self.peers.run())
            await asyncio.sleep(1.2 * count + 0.05 * count)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        before = len(self.asked)
        run(main())
        return self.asked[before:]

    @property
    def known(self) -> dict[str, tuple[str, str]]:
        """State and address of each peer."""
        return {pod: (peer.state, peer.name) for pod, peer in self.fleet.peers.items()}


def head(status: int) -> ResponseHead:
    reader = ResponseReader()
    reader.expect(b"GET")
    reader.feed(answer(b"%d X" % status, b"", b"content-length: 0"))
    assert reader.head is not None
    return reader.head


def says(pod: str, state: Any = "serving", address: str = "192.0.2.99:1") -> bytes:
    return encode(Heartbeat(pod, address, state))


@pytest.fixture
def rig_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Rig]:
    return lambda *listed: Rig(monkeypatch, *listed)


def test_those_that_are_listed_are_known_by_what_they_say(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(ONE, TWO)
    rig.says = {ONE: says("pod-1"), TWO: says("pod-2", "draining")}
    assert sorted(rig.rounds(2), key=str) == [ONE, ONE, TWO, TWO]
    # Where they were asked, they are reached: their own word may be another network's.
    assert rig.known == {"pod-1": ("serving", "10.0.0.1:80"), "pod-2": ("draining", "pod-2.pods:81")}
    assert rig.fleet.peers["pod-1"].heard == rig.clock.now()


def test_each_is_asked_with_words_of_its_own(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(ONE, TWO)
    rig.rounds(1)
    assert len({*rig.lines}) == 2
    for lines in rig.lines:
        noted, _ = FIELDS.read(lines.rstrip(b"\r\n").split(b"\r\n"))
        about = belongs_to(b"GET", PATH.encode(), noted[b"x-request-id"], 0)
        assert read(noted, KEYS, about).pod == "pod-0"


def test_nobody_is_asked_without_a_key(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of(ONE)
    rig.hop.keys = ()
    assert rig.rounds(3) == []
    rig.hop.keys = KEYS
    assert rig.rounds(1) == [ONE]


def test_one_that_was_met_elsewhere_is_asked_while_nobody_else_speaks_for_it(
    rig_of: Callable[..., Rig],
) -> None:
    rig = rig_of(ONE)
    rig.fleet.hear(Heartbeat("pod-2", "pod-2.pods:81", "serving"), rig.clock.now())
    assert rig.rounds(2) == [ONE, ONE]
    rig.alone = True
    assert sorted(rig.rounds(1), key=str) == [ONE, TWO]


@pytest.mark.parametrize(
    "no_answer",
    [
        ConnectionRefusedError(),
        TimeoutError(),
        ProtocolError(MALFORMED, "?"),
        KeyError("a bug must not end the asking"),
        403,
        503,
        b"",
        b"nonsense",
        says("pod-1") + b" " * MAX_BYTES,
    ],
    ids=lambda said: repr(said)[:20],
)
def test_who_does_not_answer_twice_in_a_row_is_left_until_it_does(
    rig_of: Callable[..., Rig], caplog: pytest.LogCaptureFixture, no_answer: Said
) -> None:
    rig = rig_of(ONE, TWO)
    rig.says = {ONE: says("pod-1"), TWO: says("pod-2")}
    rig.rounds(1)
    rig.says[ONE] = no_answer
    rig.rounds(1)
    assert rig.known["pod-1"][0] == "serving"
    rig.rounds(3)
    assert rig.known == {"pod-1": ("down", "10.0.0.1:80"), "pod-2": ("serving", "pod-2.pods:81")}
    assert rig.fleet.peers["pod-1"].why == "does not answer"
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("peer 10.0.0.1:80 does not answer: ")
    rig.says[ONE] = says("pod-1")
    rig.rounds(1)
    assert rig.known["pod-1"][0] == "serving"
    rig.says[ONE] = no_answer
    rig.rounds(1)
    assert rig.known["pod-1"][0] == "serving", "not twice in a row"


def test_one_list_may_serve_all_pods(rig_of: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    """We refuse our own question as a loop, and do not ask again."""
    rig = rig_of(ONE, TWO)
    rig.says = {ONE: 508, TWO: says("pod-2")}
    assert rig.rounds(4).count(ONE) == 1
    assert rig.known.keys() == {"pod-2"}
    assert caplog.records == []


def test_few_are_asked_at_once(rig_of: Callable[..., Rig]) -> None:
    everybody = [Address(f"10.0.1.{n}", 80) for n in range(40)]
    rig = rig_of(*everybody)
    rig.says = {address: says(f"pod-{address.host}") for address in everybody}
    rig.rounds(1)
    assert (len(rig.known), rig.most) == (40, 16)


def test_what_is_no_longer_asked_is_not_remembered(rig_of: Callable[..., Rig]) -> None:
    rig = rig_of()
    rig.alone = True
    for n in range(50):
        rig.fleet.hear(Heartbeat("pod-1", f"10.0.0.{n + 1}:80", "serving"), rig.clock.now())
        rig.rounds(1)
    assert len(rig.peers._missed) == 1
