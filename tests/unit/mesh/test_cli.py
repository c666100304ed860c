"""The command line: exit statuses, pass-through, and what is checked."""

import json
import os
import sys
from pathlib import Path

import pytest

from mesh import cli


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    """Run `headgate` with these words; its exit status."""
    monkeypatch.setattr(sys, "argv", ["headgate", *words])
    with pytest.raises(SystemExit) as leaving:
        cli.main()
    return leaving.value.code


@pytest.mark.parametrize(
    ("name", "module"),
    [("sidecar", "sidecar"), ("pod", "model_pod"), ("up", "mesh.local"), ("bench", "mesh.bench")],
)
def test_programs_are_entered_by_exec_with_their_words_unread(
    monkeypatch: pytest.MonkeyPatch, name: str, module: str
) -> None:
    entered: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, argv: entered.append([path, *argv]))
    words = ["--help", "--unknown=1", "-x", "plain", "--"]
    assert run(monkeypatch, name, *words) == 0
    # `--` only says that what follows it is no option, and nothing does.
    assert entered == [[sys.executable, sys.executable, "-m", module, *words[:-1]]]


@pytest.mark.parametrize("words", ["bogus", "--bogus", "config check", "config check a b"])
def test_wrong_use_exits_with_64(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    assert run(monkeypatch, *words.split()) == 64


def test_the_version_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("headgate")


def test_check_accepts_a_good_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("engine: {address: 127.0.0.1:8000}\n")
    assert run(monkeypatch, "config", "check", str(file)) == 0
    assert capsys.readouterr().out == f"{file}: ok\n"


def test_check_names_the_key_and_exits_with_64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("engine: {addres: 127.0.0.1:8000}\n")
    assert run(monkeypatch, "config", "check", str(file)) == 64
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"{file}: engine.addres: ")
    assert "address" in captured.err.rpartition(":")[2]


def test_check_of_no_file_exits_with_64(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert run(monkeypatch, "config", "check", str(tmp_path / "none.yaml")) == 64


def test_schema_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "config", "schema") == 0
    assert "$schema" in json.loads(capsys.readouterr().out)
