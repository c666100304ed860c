"""Systems under load, for real and for seconds: each serves, is measured, and leaves nothing behind."""

import asyncio
import os
import signal

import pytest

from mesh.bench import contenders, runs
from mesh.bench.capacity import Capacity
from mesh.bench.clients import drive
from mesh.bench.engines import Watched, watched
from mesh.bench.envoys import FIFO_CONNECTIONS
from mesh.bench.origin import Origin
from mesh.bench.scenarios import Scenario
from mesh.bench.workload import Ask, Lengths, Traffic, stock
from tests.harness.processes import envoy_binary, is_alive, valkey_binary

pytestmark = pytest.mark.integration

TINY = Lengths(20, 0.0, 20)


def _two_classes(capacity: float) -> list[Traffic]:
    return [
        stock(cls, capacity / 2, tenant=cls, key=f"key-of-{cls}", prompt=TINY, answer=8)
        for cls in ("premium", "batch")
    ]


SCENARIO = Scenario(
    name="tiny", says="short", traffic=_two_classes, window=(0.2, 1.2), changes_at_s=0, afterwards_s=0.8
)


SERVES = {"headgate": 2, "headgate-direct": 1, "envoy-adaptive": 1, "envoy-admission": 1, "engine-64": 1}


@pytest.mark.parametrize(("name", "pods"), SERVES.items())
def test_a_load_that_all_can_bear_is_served(name: str, pods: int) -> None:
    envoy_binary()
    valkey_binary()
    found = asyncio.run(
        runs.run(SCENARIO, contenders.ALL[name], capacity=Capacity(5000.0), pods=pods, seed=1)
    )
    assert (found.scenario, found.contender, found.seed) == ("tiny", name, 1)
    assert found.score.total.origins > 5
    assert found.score.total.served == 1, found.score.reasons
    assert found.score.classes.keys() == {"premium", "batch"}
    assert found.extras["cores"].keys() >= {"pod-0", "generator"}


def test_the_queue_queues_and_refuses_nobody() -> None:
    envoy_binary()
    crowd = FIFO_CONNECTIONS + 30
    caller = stock("premium", 1.0, prompt=TINY, answer=60, patience_s=30.0)
    asks = [Ask(0.0, caller, 20, number) for number in range(crowd)]

    async def ask() -> tuple[list[Origin], Watched]:
        async with (
            contenders.started(contenders.ALL["fifo"], pods=1, traffic=[caller]) as running,
            watched(running.engines) as engines,
        ):
            return await drive(asks, running.targets, model=running.model), engines

    origins, engines = asyncio.run(ask())
    assert {origin.outcome for origin in origins} == {"served"}
    assert {len(origin.attempts) for origin in origins} == {1}
    most = max(sample.running + sample.waiting for sample in engines.samples[0])
    assert 30 < most <= FIFO_CONNECTIONS


async def _until_broken(running: contenders.Running) -> None:
    while True:
        running.check()
        await asyncio.sleep(0.01)


def test_a_part_that_dies_breaks_the_run_and_all_parts_end() -> None:
    async def lose_an_engine() -> list[int]:
        async with contenders.started(contenders.ALL["engine-64"], pods=2, traffic=[]) as running:
            running.check()
            pids = list(running.pids.values())
            os.kill(pids[0], signal.SIGKILL)
            with pytest.raises(contenders.Broken, match="pod-0 was killed by signal 9"):
                await _until_broken(running)
        return pids

    assert not [pid for pid in asyncio.run(lose_an_engine()) if is_alive(pid)]


def test_a_part_that_does_not_start_is_named() -> None:
    async def start() -> None:
        async with contenders.started(
            contenders.ALL["engine-64"], pods=1, traffic=[], engine=["--kv-tokens", "none"]
        ):
            pytest.fail("it started")

    with pytest.raises(contenders.Broken, match="pod-0 exited with status 64") as broken:
        asyncio.run(start())
    assert "--kv-tokens" in str(broken.value)
