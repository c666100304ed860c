"""`python -m model_pod`: load, serve, and end cleanly."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NoReturn

import uvloop
from aiohttp import web

from model_pod.config import EXIT_USAGE, FAKE, Address, Settings, parse
from model_pod.engine import CannotServe
from model_pod.fake_engine import FakeEngine
from model_pod.fault_switch import Switch, listening
from model_pod.faulty_server import FaultyServer, Ports
from model_pod.health import Health
from model_pod.server import BACKLOG, Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from model_pod.engine import Engine

log = logging.getLogger("model_pod")

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse(argv)
    logging.basicConfig(level=settings.log_level.upper(), format=LOG_FORMAT)
    try:
        return uvloop.run(serve(settings))
    except (CannotServe, OSError) as error:
        # A folder without weights, a port in use: the message says it, a traceback would hide it.
        print(f"model_pod: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, CannotServe) else 1


async def serve(settings: Settings) -> int:
    """Run until a signal (0) or until the engine dies (1)."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    health = Health(settings.health_listen, settings.served_model_name) if settings.health_listen else None
    try:
        engine = make_engine(settings)
        await wait_for(engine.start(), stop)
        if stop.is_set():
            _leave_now()
        try:
            return await _serve_http(settings, engine, health, stop)
        finally:
            await engine.stop()
    finally:
        if health:
            health.close()


async def _serve_http(settings: Settings, engine: Engine, health: Health | None, stop: asyncio.Event) -> int:
    switch = Switch(engine.pace) if settings.faults and isinstance(engine, FakeEngine) else None
    name = settings.served_model_name
    server = FaultyServer(engine, name, switch) if switch else Server(engine, name)
    # A client that leaves must cancel its handler: aiohttp does so only when told.
    runner = web.AppRunner(server.app(), handler_cancellation=True, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.listen.host, settings.listen.port, backlog=BACKLOG)
        await site.start()
        address = Address(settings.listen.host, runner.addresses[0][1])
        if health:
            health.set(serving=True)
            log.info("grpc.health.v1 on port %d", health.port)
        async with _faults(settings, switch, Ports(runner, health)):
            print(f"ready http://{address}", flush=True)
            await wait_for(engine.died.wait(), stop)
        if health:
            health.set(serving=False)
        for each in runner.sites:
            await each.stop()
        await server.drain(settings.grace_s)
    finally:
        await runner.cleanup()
    return 1 if engine.died.is_set() else 0


@asynccontextmanager
async def _faults(settings: Settings, switch: Switch | None, ports: Ports) -> AsyncIterator[None]:
    """Take faults inside the block, where they are wanted."""
    if switch is None or settings.faults is None:
        yield
        return
    switch.followers.append(ports.follow)
    async with listening(switch, settings.faults) as port:
        log.info("faults on port %d", port)
        yield


def _leave_now() -> NoReturn:
    """End while the model loads: nothing is in flight, and a thread that loads cannot be interrupted."""
    log.info("stopped while loading")
    logging.shutdown()
    os._exit(0)


async def wait_for(work: Awaitable[object], stop: asyncio.Event) -> None:
    """Wait for `work` or the signal; raises what `work` raises."""
    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    if tasks[0].done():
        tasks[0].result()


def make_engine(settings: Settings) -> Engine:
    if settings.engine == FAKE:
        return FakeEngine(
            settings.costs,
            settings.lengths,
            max_model_len=settings.max_model_len or 32_768,
            max_running=settings.max_running,
            max_waiting=settings.max_waiting,
            by_priority=settings.priority_scheduling,
            seed=settings.seed,
        )
    # A pod never looks anything up; the library reads this when it is imported.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Torch takes seconds to import, and the fake engine runs where there is none.
    try:
        from model_pod.torch_engine import load_engine
    except ModuleNotFoundError as error:
        needs = f"--engine transformers needs {error.name}: pip install 'headgate[pod]'"
        raise CannotServe(needs) from error
    return load_engine(settings)


if __name__ == "__main__":
    sys.exit(main())
