"""Who is broken, and in which order. That it is: integration."""

import asyncio
from itertools import count
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mesh.bench.contenders import Running
from mesh.bench.faults import breaks
from mesh.bench.faults.trials import Break
from mesh.local import plan
from mesh.local.plan import Options


class System:
    """Stands in for a system, its processes and its engines; remembers what was done."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, valkey: bool = True) -> None:
        self.done: list[tuple[str, object]] = []
        self.layout = plan.lay_out(Options(pods=3, faults=True), count(20001))
        self.pids = {"valkey": 1} if valkey else {}
        self.parts = SimpleNamespace(
            kill=lambda name: self.done.append(("kill", name)),
            stop=lambda name: self.done.append(("stop", name)),
            restart=self._restart,
        )
        monkeypatch.setattr(breaks, "put", self._put)

    async def _restart(self, name: str) -> None:
        self.done.append(("begins", name))
        await asyncio.sleep(0)
        self.done.append(("is back", name))

    async def _put(self, url: str, fault: dict[str, Any]) -> None:
        self.done.append((url, fault))

    def apply(self, each: Break, *victims: int) -> list[tuple[str, object]]:
        asyncio.run(breaks.apply(each, cast(Running, self), set(victims)))
        return self.done


@pytest.mark.parametrize(("part", "name"), [("pod", "pod-1"), ("sidecar", "sidecar-pod-1")])
@pytest.mark.parametrize("act", ["kill", "stop"])
def test_processes_of_victims(monkeypatch: pytest.MonkeyPatch, act: Any, part: Any, name: str) -> None:
    assert System(monkeypatch).apply(Break(act=act, part=part), 1) == [(act, name)]


def test_restarts_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    done = System(monkeypatch).apply(Break(act="restart", part="sidecar"), 2, 0)
    names = ("sidecar-pod-0", "sidecar-pod-2")
    assert done == [(what, name) for name in names for what in ("begins", "is back")]


def test_faults_are_told_to_each_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    system = System(monkeypatch)
    ports = [pod.engine_faults and pod.engine_faults.port for pod in system.layout.pods]
    done = system.apply(Break(act="fault", fault={"kind": "hang"}), 0, 1)
    assert done == [(f"http://127.0.0.1:{port}/fault", {"kind": "hang"}) for port in ports[:2]]


def test_there_is_one_redis_whoever_the_victims_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert System(monkeypatch).apply(Break(act="stop", part="valkey"), 0, 1) == [("stop", "valkey")]


def test_without_a_redis_there_is_none_to_break(monkeypatch: pytest.MonkeyPatch) -> None:
    assert System(monkeypatch, valkey=False).apply(Break(act="stop", part="valkey"), 0) == []
