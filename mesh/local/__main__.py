"""The command line of `headgate up`."""

import os
from enum import StrEnum
from typing import Annotated

import typer

from mesh import exits
from mesh.local.plan import Options, collector
from mesh.local.up import up

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


class Engine(StrEnum):
    """What runs in the pods."""

    TRANSFORMERS = "transformers"
    FAKE = "fake"


@app.command()
def run(
    pods: Annotated[
        int, typer.Option(min=1, max=64, help="How many pods.")
    ] = 2,
    engine: Annotated[
        Engine, typer.Option(help="A real model on torch, or a latency model of one.")
    ] = Engine.TRANSFORMERS,
    model: Annotated[
        str | None, typer.Option(help="A model's folder; without one, a tiny model is built.")
    ] = None,
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Where callers find the mesh.")
    ] = 8000,
    redis: Annotated[
        str | None, typer.Option(help="Use the Redis at this URL instead of starting Valkey.")
    ] = None,
    envoy: Annotated[
        bool, typer.Option("--envoy/--no-envoy", help="Envoy in front of the sidecars.")
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="When ready, print one line of URLs and pids.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show what the parts write.")
    ] = False,
) -> None:
    """Run Valkey, pods, a sidecar for each, and Envoy on this machine until Ctrl-C."""
    options = Options(pods, engine, model, port, redis, envoy, collector(os.environ))
    raise typer.Exit(up(options, as_json=as_json, verbose=verbose))


exits.run(app, "headgate up")
