"""Reading of command lines that several benches share."""

from collections.abc import Collection, Sequence

import typer


def check_known(option: str, names: Sequence[str] | None, known: Collection[str]) -> None:
    """Raise when one of `names`, given to `option`, is none of those that there are."""
    for name in names or ():
        if name not in known:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(known)}", param_hint=option)
