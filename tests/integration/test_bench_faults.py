"""Systems that are broken, for real and for seconds: each is measured, and leaves nothing behind."""

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from mesh.bench import contenders
from mesh.bench.faults import run, systems, trials
from mesh.bench.faults.run import Result, Verdict
from mesh.bench.faults.trials import Trial
from tests.harness.processes import envoy_binary, is_alive, valkey_binary

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "HEALTHY_S", 2.0)
    monkeypatch.setattr(run, "ENDING_S", 5.0)


def tried(trial: Trial, system: str) -> Result:
    """Of two pods, for long enough to see that one is out."""
    envoy_binary()
    valkey_binary()
    short = replace(trial, lasts_s=6.0)
    return asyncio.run(run.run(short, systems.ALL[system], pods=2, seed=1))


def said(result: Result, bound: str) -> Verdict:
    (found,) = (verdict for verdict in result.verdicts if verdict.bound == bound)
    return found


def test_envoy_leaves_an_engine_that_is_killed() -> None:
    found = tried(trials.ALL["killed"], "envoy")
    assert found.asked > 5
    assert found.fates["served"] > 5
    out = said(found, "out after")
    assert out.met is not None
    assert out.figure is not None
    assert out.figure < 6


@pytest.mark.parametrize("system", ["headgate", "sidecars"])
def test_callers_of_sidecars_outlive_their_redis(system: str) -> None:
    found = tried(trials.ALL["no-redis"], system)
    assert found.fates["served"] > 5
    assert found.machine > 0


def test_an_engine_does_wrong_as_it_is_told() -> None:
    found = tried(trials.ALL["storm"], "envoy")
    assert set(found.fates) & {"failed"}
    assert found.reasons.keys() == {"500"}
    tries = said(found, "tries of each").figure
    assert tries is not None
    assert tries >= 1


async def _until_broken(running: contenders.Running) -> None:
    async with asyncio.timeout(30):
        while True:
            running.check()
            await asyncio.sleep(0.01)


def test_sidecars_come_back_one_after_the_other() -> None:
    async def restart() -> None:
        system = replace(systems.ALL["sidecars"], admission={})
        async with contenders.started(system, pods=2, traffic=[]) as running:
            before = dict(running.pids)
            async with asyncio.timeout(60):
                await running.parts.restart("sidecar-pod-0")
                await running.parts.restart("sidecar-pod-1")
            running.check()
            assert not is_alive(before["sidecar-pod-0"])
            assert is_alive(before["pod-0"])
            # One that nobody restarts may not die.
            os.kill(before["pod-0"], signal.SIGKILL)
            with pytest.raises(contenders.Broken, match="pod-0 was killed"):
                await _until_broken(running)

    asyncio.run(restart())
