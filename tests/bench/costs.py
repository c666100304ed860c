"""What things cost: CPU for a request, a chunk and a kilobyte, and memory for an open stream."""

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from math import nan

from tests.bench import hot_path
from tests.bench.load import Spent, closed_loop, streaming, watch
from tests.bench.machine import most_streams, resident_kb
from tests.bench.peers import STEPS_PER_S, Listener, post
from tests.bench.proxies import BASELINE, Proxy, gateway_and_sidecar, standing
from tests.bench.report import SUBJECT, Budget, Figure
from tests.bench.rounds import KB, US, Bench, Values, in_turns


async def python(bench: Bench) -> list[Figure]:
    """The sidecar without sockets, as a ratio to httptools on the same bytes."""
    run = hot_path.run(bench.some(50))
    return [
        Figure("request ÷ httptools", "x", {SUBJECT: run.ratios}, Budget(8, aim=5)),
        Figure("request", "µs", {SUBJECT: run.requests, "httptools": run.floors}),
        Figure("SSE chunk", "µs", {SUBJECT: run.chunks}),
    ]


def _each(spent: Spent, what: str) -> dict[str, float]:
    """Microseconds of CPU for one of what passed, and the parts of that where they are known."""
    cpu, unit = spent.cpu, US / spent.count
    known = unit if cpu.has_parts else nan
    return {what: cpu.total * unit, f"{what}: user": cpu.user * known, f"{what}: system": cpu.system * known}


async def requests(bench: Bench) -> list[Figure]:
    """CPU for a request of 1 KB and its answer of 1 KB, on connections that never rest."""
    async with standing(bench.names, bench.place) as proxies:

        async def measure(proxy: Proxy) -> dict[str, float]:
            found: dict[str, float] = {}
            for connections in (32, 256):
                async with closed_loop(proxy.port, connections, post(), bench.place.folder):
                    spent = await watch(proxy.pids, lambda: bench.engine.answers, bench.seconds(1.6))
                found |= _each(spent, f"{connections} connections")
            return found

        values = await in_turns(bench.rounds, proxies, measure)
    budget = Budget(0.8, BASELINE, aim=0.6)
    return [Figure(what, "µs", found, None if ":" in what else budget) for what, found in values.items()]


async def chunks(bench: Bench) -> list[Figure]:
    """CPU for an SSE chunk.

    50 or 25 a second: on each stream, and on all at once, as engines step. In turn: the next chunk of a
    stream when the last is through, which keeps the core busy enough to tell user code from the kernel.
    """
    async with standing(bench.names, bench.place) as proxies:

        async def measure(proxy: Proxy) -> dict[str, float]:
            found: dict[str, float] = {}
            for streams, rate in ((64, 50), (64, 0), (1000, 25)):
                bench.engine.stride = STEPS_PER_S // rate if rate else 1
                (spent,) = await _streamed(bench, proxy, streams, in_turn=not rate)
                found |= _each(spent, f"{streams:,} streams, {f'{rate}/s' if rate else 'in turn'}")
            bench.engine.stride = 1
            return found

        values = await in_turns(bench.rounds, proxies, measure)
    budgets = {"": Budget(0.75, BASELINE), "user": Budget(2), "system": None}
    return [Figure(what, "µs", found, budgets[what.partition(": ")[2]]) for what, found in values.items()]


async def _streamed(
    bench: Bench, proxy: Proxy, streams: int, *more: Proxy, in_turn: bool = False
) -> list[Spent]:
    """What chunks cost this proxy, and others that are watched meanwhile.

    `in_turn`: the engine writes the next chunk of a stream when the last has arrived, as fast as that may be.
    """
    heard = 0
    keys: dict[Listener, bytes] = {}

    def hear(listener: Listener, count: int) -> None:
        nonlocal heard
        heard += count
        if in_turn:
            for _ in range(count):
                bench.engine.turn(keys[listener])

    names = [b"%d" % i for i in range(streams)]
    asked = [post(b"?turn=" + name if in_turn else b"?stream") for name in names]
    bench.engine.holds = True  # else the first would keep everybody busy while the last are opened
    async with streaming(proxy.port, asked, hear) as listeners:
        bench.engine.holds = False
        keys.update(zip(listeners, names, strict=True))
        if in_turn:
            for name in names:
                bench.engine.turn(name)
        watched = (watch(each.pids, lambda: heard, bench.seconds(1.6)) for each in (proxy, *more))
        return await asyncio.gather(*watched)


async def ceiling(bench: Bench) -> list[Figure]:
    """Chunks a second through one full core: 256 streams, the next chunk of each when the last is through."""
    async with standing(bench.names, bench.place) as proxies:

        async def measure(proxy: Proxy) -> dict[str, float]:
            (spent,) = await _streamed(bench, proxy, 256, in_turn=True)
            return {
                "chunks": spent.count / spent.wall_s,
                "share of its core": spent.busy * 100,
                "chunks with a whole core": spent.count / spent.cpu.total,
            }

        values = await in_turns(bench.rounds, proxies, measure)
    return [Figure(what, "%" if "share" in what else "1/s", found) for what, found in values.items()]


async def path(bench: Bench) -> list[Figure]:
    """CPU for 1,000 tokens on 256 streams through the gateway as it is shipped and a sidecar behind it."""
    values: Values = {}
    async with gateway_and_sidecar(bench.place) as whole_and_parts:
        for _ in range(bench.rounds):
            spent = await _streamed(bench, whole_and_parts[0], 256, *whole_and_parts[1:])
            for proxy, cost in zip(whole_and_parts, spent, strict=True):
                values.setdefault(proxy.name, []).append(cost.cpu.total / cost.count * US)
    return [Figure("1,000 tokens", "ms", values)]


async def bodies(bench: Bench) -> list[Figure]:
    """CPU for requests with large bodies, on 8 connections, and what each KB adds to one of 1 KB."""
    sizes = (1, 100, 1000)
    async with standing(bench.names, bench.place) as proxies:

        async def measure(proxy: Proxy) -> dict[str, float]:
            cost = {}
            for size in sizes:
                async with closed_loop(proxy.port, 8, post(size=size * KB), bench.place.folder):
                    spent = await watch(proxy.pids, lambda: bench.engine.answers, bench.seconds(1))
                cost[size] = spent.cpu.total / spent.count * US
            found = {f"{size:,} KB": value for size, value in cost.items()}
            for size in sizes[1:]:
                found[f"each KB of {size:,}"] = (cost[size] - cost[1]) / (size - 1)
            return found

        values = await in_turns(bench.rounds, proxies, measure)
    return [
        Figure(what, "µs", found, Budget(1) if what.startswith("each") else None)
        for what, found in values.items()
    ]


async def memory(bench: Bench) -> list[Figure]:
    """Resident memory of a fresh process, and what open streams add to it; each has a chunk a second."""
    few, many = bench.some(1000), most_streams(bench.some(8000))

    async def measure(name: str) -> dict[str, float]:
        # To a port of its own: thousands of connections to one leave no free port for the next thousands.
        place = replace(bench.place, engine=await bench.engine.listen())
        async with AsyncExitStack() as stack:
            proxy = (await stack.enter_async_context(standing([name], place)))[name]
            held = [resident_kb(proxy.pids)]
            for streams in (few, many - few):
                asked = [post(b"?trickle")] * streams
                await stack.enter_async_context(streaming(proxy.port, asked, lambda *_: None))
                await asyncio.sleep(bench.seconds(1.5))  # a chunk on each, and time to free what can be
                held.append(resident_kb(proxy.pids))
        idle, low, high = held
        return {
            "idle": idle / KB,
            f"{few:,} streams": low / KB,
            f"{many:,} streams": high / KB,
            "each stream between": (high - low) / (many - few),
        }

    values = await in_turns(min(bench.rounds, 2), {name: name for name in bench.names}, measure)
    budgets = {"idle": Budget(60), "each stream between": Budget(25)}
    return [
        Figure(what, "KB" if "between" in what else "MB", found, budgets.get(what))
        for what, found in values.items()
    ]
