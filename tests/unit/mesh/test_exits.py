"""Wrong use ends with 64, whatever typer would say; everything else passes."""

import sys

import pytest
import typer

from mesh import exits


@pytest.mark.parametrize(("own", "seen"), [(0, 0), (1, 1), (2, 64), (64, 64)])
def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, own: int, seen: int) -> None:
    app = typer.Typer()

    @app.command()
    def leave() -> None:
        raise typer.Exit(own)

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as leaving:
        exits.run(app, "program")
    assert leaving.value.code == seen
