"""Exit statuses of every command: 0 done, 1 failed, 64 wrong use or configuration (sysexits' EX_USAGE).

A supervisor must be able to tell 64 apart: starting again with the same words cannot help.
"""

from typing import Final

import typer

FAILED: Final = 1
USAGE: Final = 64

# What typer ends with when it does not understand its arguments.
_TYPER_USAGE: Final = 2


def run(app: typer.Typer, name: str) -> None:
    """Run the program `name` to its end; wrong use exits with our status, not typer's."""
    try:
        app(prog_name=name)
    except SystemExit as leaving:
        raise SystemExit(USAGE if leaving.code == _TYPER_USAGE else leaving.code) from None
