"""The `headgate` command.

Long-running programs are modules of their own: `headgate sidecar …` becomes `python -m sidecar …` by exec, so
that a data plane carries neither this command line's libraries nor a parent process. Their arguments pass
unread; `headgate sidecar --help` is the sidecar's.
"""

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from mesh import endpoints, exits
from sidecar import config
from sidecar.errors import ConfigError

PROGRAMS: Final = {
    "sidecar": ("sidecar", "Run the sidecar of one pod."),
    "pod": ("model_pod", "Run a model server."),
    "up": ("mesh.local", "Run a whole mesh on this machine."),
    "bench": ("mesh.bench", "Load a server, and show how well it serves whom."),
}

_WIDE: Final = 240  # columns, where nobody sees lines end

app = typer.Typer(
    help="A service mesh for GPU model pods.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Check and describe the sidecar's configuration.", no_args_is_help=True)
app.add_typer(config_app, name="config")


def program(module: str, arguments: list[str]) -> list[str]:
    """The command line that runs one of our programs with this very Python."""
    return [sys.executable, "-m", module, *arguments]


def _add_program(name: str, module: str, help_text: str) -> None:
    def run(context: typer.Context) -> None:
        argv = program(module, context.args)
        os.execv(argv[0], argv)

    passes_all = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    app.command(name, help=help_text, context_settings=passes_all)(run)


for _name, (_module, _help) in PROGRAMS.items():
    _add_program(_name, _module, _help)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(f"headgate {version('headgate')}")
    except PackageNotFoundError:
        typer.echo("headgate, not installed: run from a checkout")
    raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@config_app.command("check")
def check(file: Annotated[Path, typer.Argument(help="A sidecar's YAML file.")]) -> None:
    """Read FILE as a sidecar would; say what is wrong with it."""
    try:
        config.load(file, os.environ)
    except ConfigError as error:
        typer.echo(f"{file}: {error}", err=True)
        raise typer.Exit(exits.USAGE) from None
    typer.echo(f"{file}: ok")


@config_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of a sidecar's configuration."""
    typer.echo(json.dumps(config.schema(), indent=2))


@app.command("endpoints")
def _endpoints(
    admin: Annotated[str, typer.Option(help="Where the sidecar's admin port is.")] = "http://127.0.0.1:9911",
    as_json: Annotated[bool, typer.Option("--json", help="Print what came, as it came.")] = False,
) -> None:
    """Show where a sidecar can send work: its engine, its peers, who is ejected and for how long."""
    if not endpoints.is_address(admin):
        typer.echo(f"--admin: expected http://HOST:PORT, got {admin!r}", err=True)
        raise typer.Exit(exits.USAGE)
    try:
        page = endpoints.fetch(admin)
        found = endpoints.read(page)
    except endpoints.Unreachable as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(exits.FAILED) from None
    if as_json:
        typer.echo(page.decode())
    else:
        Console(width=None if sys.stdout.isatty() else _WIDE).print(endpoints.table(found))


def main() -> None:
    exits.run(app, "headgate")
