"""What is shown and what is logged; a test's stderr is no terminal, so lines are plain."""

from pathlib import Path

import pytest

from mesh.local import console
from mesh.local.console import Console
from mesh.local.plan import Part

POD = Part("pod-0", 1, ("true",))


@pytest.mark.parametrize("verbose", [False, True])
def test_a_life_in_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str], verbose: bool) -> None:
    with Console(tmp_path, verbose=verbose) as shown:
        shown.starting(POD)
        shown.line(POD, "loading [bold]x[/bold] " + "y" * 200)
        shown.ready(POD, 1.25)
        shown.died(POD, "exited with status 1", 0.5)
    captured = capsys.readouterr()
    assert captured.out == ""
    said = f"pod-0 | loading [bold]x[/bold] {'y' * 200}"
    assert captured.err.splitlines() == [
        "pod-0: starting",
        *([said] if verbose else []),
        "pod-0: ready after 1.2 s",
        "pod-0: exited with status 1; starting it again in 0.5 s",
    ]


def test_each_part_has_a_log(tmp_path: Path) -> None:
    with Console(tmp_path, verbose=False) as shown:
        shown.line(POD, "one")
        shown.line(Part("envoy", 3, ("true",)), "100 % two")
        shown.line(POD, "three")
    assert (tmp_path / "pod-0.log").read_text() == "one\nthree\n"
    assert (tmp_path / "envoy.log").read_text() == "100 % two\n"


def test_logs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "MOST_LOG_BYTES", 1000)
    with Console(tmp_path, verbose=False) as shown:
        for number in range(1000):
            shown.line(POD, f"line {number}")
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 2000
    assert (tmp_path / "pod-0.log").read_text().endswith("line 999\n")
