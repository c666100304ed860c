"""A mesh's blackboard in a real Valkey whose time a test decides, and sidecars that call it one by one."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import redis

from sidecar.balance.blackboard import (
    Memory,
    Notice,
    Post,
    Terms,
    View,
    Vote,
    channel,
    decode,
    decode_notice,
    encode,
    keys,
)
from sidecar.net.blackboard import source
from tests.harness.processes import HOST, free_port, valkey

MESH: Final = "demo"
TEN: Final = tuple(f"pod-{i}" for i in range(10))  # two of them may be ejected
MEMBERS, SEEN, VOTES, SUSPECTS, EJECTED, TICKETS, PARDONS, PROBES, RETRIES, META = keys(MESH)
TERMS: Final = Terms(max_replicas=256, max_percent=20, longest_ms=300_000, lease_ms=3_000)


class Wall:
    """The blackboard, and the time there."""

    def __init__(self, store: "redis.Redis") -> None:
        self.now = 1_795_000_000_000  # ms
        self._jumped = 0
        self.terms = TERMS
        self.store = store
        self._script = store.register_script(source())
        self._sidecars: dict[str, Caller] = {}

    def __getitem__(self, pod: str) -> "Caller":
        if pod not in self._sidecars:
            self._sidecars[pod] = Caller(self, pod)
        return self._sidecars[pod]

    def pods(self, *names: str) -> list["Caller"]:
        """These have joined."""
        found = [self[name] for name in names]
        for each in found:
            each.post()
        return found

    def advance(self, seconds: float, *, silent: tuple[str, ...] = ()) -> None:
        """Time passes, and all who have joined post each second, but these."""
        until = self.now + round(seconds * 1000)
        while self.now < until:
            self.now = min(until, self.now + 1000)
            for each in self._sidecars.values():
                if each.has_joined and each.pod not in silent:
                    each.post()

    def jump(self, seconds: float) -> None:
        """The server's clock is set anew; no time passes."""
        self.now += round(seconds * 1000)
        self._jumped += round(seconds * 1000)

    def monotonic(self) -> float:
        """The sidecars' own time, in seconds."""
        return (self.now - self._jumped) / 1000

    def out(self) -> dict[str, float]:
        """Who is ejected, as the keys have it, and for how many seconds more."""
        found = self.store.zrange(EJECTED, 0, -1, withscores=True)
        return {pod.decode(): (ends - self.now) / 1000 for pod, ends in found}

    def call(self, arguments: tuple[bytes, ...], *, own_time: bool = False) -> View:
        _, *rest = arguments
        when = "" if own_time else str(self.now)
        return decode(self._script(keys=keys(MESH), args=[when, *rest]))

    def lose(self) -> None:
        """All keys are gone; the server is there."""
        self.store.flushall()

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Notice]]:
        """What is published in the block, once it has ended."""
        heard: list[Notice] = []
        with self.store.pubsub() as line:
            line.subscribe(channel(MESH))
            line.get_message(timeout=5)
            yield heard
            self.store.publish(channel(MESH), b"end")
            while (message := line.get_message(timeout=5)) is None or message["data"] != b"end":
                assert message is not None
                heard.append(decode_notice(message["data"]))


class Caller:
    """One sidecar, with the memory it has; what it posts stays the same until it is changed."""

    def __init__(self, wall: Wall, pod: str) -> None:
        self.pod = pod
        self.has_joined = False
        self.said = Post(payload=b"payload of " + pod.encode(), state="serving")
        self._wall = wall
        self._memory = Memory()

    def set(self, **what: Any) -> View:
        """Post this from now on."""
        self.said = msgspec.structs.replace(self.said, **what)
        return self.post()

    def post(self, **what: Any) -> View:
        """Post, with this once."""
        post = msgspec.structs.replace(self.said, **what)
        self._memory.forget(post.uneject)
        now = self._wall.monotonic()
        held = self._memory.held(now)
        view = self._wall.call(encode(MESH, self.pod, post, self._wall.terms, held=held))
        self._memory.heard(self.pod, view, now)
        self.has_joined = not view.full
        return view

    def vote(self, target: str, **how: Any) -> str:
        """What became of this vote."""
        return self.post(votes=(vote(target, **how),)).votes[0][1]

    def leave(self) -> View:
        self.has_joined = False
        return self._wall.call(encode(MESH, self.pod, self.said, self._wall.terms, leave=True))


def vote(target: str, *, alone: bool = True, observers: int = 1, ms: int = 30_000) -> Vote:
    return Vote(target, "slow", alone, observers, ms)


@contextlib.contextmanager
def blackboard() -> Iterator[Wall]:
    """An empty one in a Valkey of its own."""
    port = free_port()
    with valkey(port), redis.Redis(HOST, port) as store:
        yield Wall(store)
