"""How long callers wait: for an answer under load, and for the first byte of an answer to a long prompt."""

import asyncio
from collections.abc import Sequence
from statistics import median, quantiles

from tests.bench.load import calling, waits_closed, waits_open, watch
from tests.bench.peers import Caller, FirstByte, post
from tests.bench.proxies import BASELINE, DIRECT, Proxy, standing
from tests.bench.report import Budget, Figure
from tests.bench.rounds import KB, US, Bench, beside_direct, in_turns


def _percentiles(waits: Sequence[float], when: str) -> dict[str, float]:
    cuts = quantiles(waits, n=100)
    return {f"p50 at {when} load": cuts[49] * US, f"p99 at {when} load": cuts[98] * US}


async def latency(bench: Bench) -> list[Figure]:
    """The wait for an answer of 1 KB.

    At full load: 64 callers that never pause; their rate is this proxy's capacity. At half load: requests at
    a constant rate, half of the least capacity and so the same for all, each counted from when it was due.
    """
    async with standing([*bench.names, DIRECT], bench.place) as proxies:

        async def full(proxy: Proxy) -> dict[str, float]:
            async with waits_closed(proxy.port, 64, post()) as waits:
                spent = await watch(proxy.pids, lambda: len(waits), bench.seconds(1.6))
                measured = waits[-spent.count :]
            found = {"full load": spent.count / spent.wall_s, "share of its core": spent.busy * 100}
            return found | _percentiles(measured, "full")

        at_full = await in_turns(bench.rounds, {name: proxies[name] for name in bench.names}, full)
        rate = min(median(rates) for rates in at_full["full load"].values()) / 2

        async def half(proxy: Proxy) -> dict[str, float]:
            return _percentiles(await waits_open(proxy.port, rate, bench.seconds(2.5), post(), 256), "half")

        at_half = await in_turns(bench.rounds, proxies, half)
    units = {"full load": "1/s", "share of its core": "%"}
    added = {
        f"{what}, added": Figure(f"{what}, added", "µs", beside_direct(found), budget)
        for (what, found), budget in zip(at_half.items(), (None, Budget(1, BASELINE)), strict=True)
    }
    return [
        *(Figure(what, units.get(what, "µs"), found) for what, found in at_full.items()),
        Figure("half load", "1/s", {name: [rate] for name in proxies}),
        *(Figure(what, "µs", found) for what, found in at_half.items()),
        *added.values(),
    ]


async def prompts(bench: Bench) -> list[Figure]:
    """The wait for the first chunk of a stream after a long prompt, one request at a time."""
    async with standing([*bench.names, DIRECT], bench.place) as proxies:

        async def measure(proxy: Proxy) -> dict[str, float]:
            return {
                f"first byte, {label}": median(await _first_bytes(proxy, size, bench.some(50))) * US
                for label, size in (("220 KB", 220 * KB), ("1 MB", KB * KB))
            }

        values = await in_turns(bench.rounds, proxies, measure)
    return [
        *(Figure(what, "µs", found) for what, found in values.items()),
        *(Figure(f"{what}, added", "µs", beside_direct(found)) for what, found in values.items()),
    ]


async def _first_bytes(proxy: Proxy, size: int, count: int) -> list[float]:
    waits: list[float] = []
    done = asyncio.Event()

    def again(caller: Caller, waited: float) -> None:
        waits.append(waited)
        if len(waits) < count:
            caller.ask()
        else:
            done.set()

    async with calling(FirstByte, proxy.port, again) as connect:
        (await connect(post(b"?once", size))).ask()
        await done.wait()
    return waits
