"""Breaks what a trial says, in a system that runs."""

import asyncio
from collections.abc import Iterable
from typing import Final

import aiohttp

from mesh.bench.contenders import Running
from mesh.bench.faults.trials import Break
from mesh.local.plan import Pod

_WITHIN_S: Final = 2.0
_RESTART_WITHIN_S: Final = 60.0


async def apply(each: Break, running: Running, victims: Iterable[int]) -> None:
    """Do it to all of its processes: restarts one after the other, all else at once.

    Raises OSError when an engine cannot be told to fail, TimeoutError when a process does not come back.
    """
    if each.part == "valkey":
        if "valkey" in running.pids:
            await _do(each, running, "valkey", None)
        return
    pods = [running.layout.pods[victim] for victim in sorted(victims)]
    for pod in pods:
        await _do(each, running, pod.name if each.part == "pod" else f"sidecar-{pod.name}", pod)


async def _do(each: Break, running: Running, name: str, pod: Pod | None) -> None:
    match each.act:
        case "kill":
            running.parts.kill(name)
        case "stop":
            running.parts.stop(name)
        case "restart":
            async with asyncio.timeout(_RESTART_WITHIN_S):
                await running.parts.restart(name)
        case "fault":
            assert pod is not None
            await put(f"http://{pod.engine_faults}/fault", dict(each.fault))


async def put(url: str, fault: dict[str, object]) -> None:
    """Tell the engine behind `url` to fail like this from now on."""
    timeout = aiohttp.ClientTimeout(total=_WITHIN_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.put(url, json=fault) as answer:
            if answer.status >= 300:
                raise OSError(f"{url}: {answer.status} {await answer.text()}")
    except aiohttp.ClientError as error:
        raise OSError(f"{url}: {error}") from None
