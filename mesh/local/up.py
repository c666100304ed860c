"""`headgate up`: plan, start, say where everything is, keep it running until a signal."""

import asyncio
import contextlib
import json
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from mesh import exits
from mesh.local import machine, plan
from mesh.local.console import Console
from mesh.local.plan import Binaries, Layout, Options
from mesh.local.supervisor import PartFailed, Supervisor

# Five for each pod (one of them may be taken by --port) and three for the rest.
_PORTS_PER_POD: Final = 5
_PORTS_BESIDE: Final = 3
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_CONNECT_WITHIN_S: Final = 2.0


class BadOption(Exception):
    """The command line asks for what cannot be; the message names the option."""


def up(options: Options, *, as_json: bool, verbose: bool) -> int:
    """Run the mesh in the foreground; the exit status."""
    try:
        binaries = check(options)
    except (BadOption, machine.MissingBinary) as error:
        print(f"headgate up: {error}", file=sys.stderr)
        return exits.USAGE if isinstance(error, BadOption) else exits.FAILED
    with machine.private_folder() as folder, Console(folder, verbose=verbose) as console:
        return asyncio.run(_run(options, binaries, folder, console, as_json=as_json))


def check(options: Options) -> Binaries:
    """Find what is missing before anything is started."""
    try:
        machine.check_free(plan.HOST, options.port)
    except machine.PortInUse as error:
        raise BadOption(f"--port: {error}; choose another") from None
    if options.model is not None:
        _check_model(options.model, options.engine)
    if options.redis:
        _check_redis(options.redis)
    return Binaries(
        valkey=None if options.redis else machine.find_valkey(),
        envoy=machine.find_envoy() if options.envoy else None,
    )


def _check_model(model: str, engine: str) -> None:
    if engine != "transformers":
        raise BadOption("--model: belongs to --engine transformers")
    if not (Path(model) / "config.json").is_file():
        raise BadOption(f"--model: {model} is not a model's folder: no config.json in it")


def _check_redis(url: str) -> None:
    parts = urlsplit(url)
    try:
        place = (parts.hostname or "localhost", parts.port or 6379)
    except ValueError:  # a port that is no number
        place = None
    if place is None or parts.scheme not in ("redis", "rediss", "unix"):
        raise BadOption("--redis: not a redis://, rediss:// or unix:// URL")
    if parts.scheme == "unix":
        return
    try:
        socket.create_connection(place, timeout=_CONNECT_WITHIN_S).close()
    except OSError as error:
        why = error.strerror or error
        raise BadOption(f"--redis: cannot connect to {place[0]}:{place[1]}: {why}") from None


async def _run(options: Options, binaries: Binaries, folder: Path, console: Console, *, as_json: bool) -> int:
    ports = machine.free_ports(plan.HOST, options.pods * _PORTS_PER_POD + _PORTS_BESIDE)
    layout = plan.lay_out(options, iter(ports))
    for name, text in plan.files(layout, options).items():
        (folder / name).write_text(text, "utf-8")
    supervisor = Supervisor(plan.parts(layout, options, binaries, folder), console)
    _end_on_signals(supervisor, console)
    try:
        async with supervisor:
            await supervisor.start()
            await _report(layout, supervisor.pids(), folder, as_json=as_json)
            await supervisor.watch()
    except PartFailed as failure:
        console.say(f"{failure}; its last lines:", style="bold red")
        for line in failure.last_lines:
            console.say(f"  {line}")
        return exits.FAILED
    except asyncio.CancelledError:
        console.say("ended")
    return 0


def _end_on_signals(supervisor: Supervisor, console: Console) -> None:
    """The first signal ends the parts in order, a second one at once."""
    running = asyncio.current_task()
    assert running is not None

    def end() -> None:
        if running.cancelling():
            supervisor.hurry()
        else:
            console.say("ending; a second Ctrl-C ends at once")
            running.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, end)


async def _report(layout: Layout, pids: Mapping[str, int], folder: Path, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan.summary(layout, pids)), flush=True)
        return
    model = await asyncio.to_thread(_first_model, plan.url(layout.pods[0].engine))
    print(plan.report(layout, pids, model, folder), flush=True)


def _first_model(engine: str) -> str:
    """The name under which the pods serve, for the curl; a placeholder if they do not say."""
    body = machine.get(f"{engine}/v1/models")
    with contextlib.suppress(ValueError, LookupError, TypeError):
        return str(json.loads(body or b"")["data"][0]["id"])
    return "MODEL"
