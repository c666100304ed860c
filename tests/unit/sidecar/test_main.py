"""`python -m sidecar`: what it says when it cannot start, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar.__main__ import EXIT_USAGE, main

ROOT = Path(__file__).parents[3]
ENGINE = "engine: {address: '127.0.0.1:9'}"


def written(folder: Path, *lines: str) -> str:
    file = folder / "sidecar.yaml"
    file.write_text("\n".join(lines))
    return str(file)


def start(file: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar"],
        cwd=ROOT,
        env=os.environ | {"HEADGATE_CONFIG": file},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Exit status and standard error."""
    with process:
        _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "engine: is required"),
        ("engine: {adress: 'a:1'}", "engine.adress: unknown key; did you mean address?"),
        ("engine: {address: '${NOBODY_SET_THIS}'}", "engine.address: environment variable"),
        ("engine: [", "line 2, column 1"),
        (None, "No such file or directory"),
    ],
)
def test_a_configuration_that_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    said: str,
) -> None:
    file = str(tmp_path / "absent.yaml") if text is None else written(tmp_path, text)
    monkeypatch.setattr("sys.argv", ["sidecar", "--config", file])
    assert main() == EXIT_USAGE == 64
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"headgate sidecar: {file}: ")
    assert said in line


def test_no_configuration_at_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["sidecar"])
    monkeypatch.delenv("HEADGATE_CONFIG", raising=False)
    assert main() == EXIT_USAGE
    assert "give --config FILE or set HEADGATE_CONFIG" in capsys.readouterr().err


def test_the_process_says_the_same_by_its_environment(tmp_path: Path) -> None:
    file = written(tmp_path, "listen: here", ENGINE)
    status, errors = ended(start(file))
    assert (status, errors.count("\n")) == (EXIT_USAGE, 1)
    assert errors.startswith(f"headgate sidecar: {file}: listen: expected host:port")


@pytest.mark.parametrize("taken", ["listen", "admin", "health_listen"])
def test_an_address_that_is_taken_is_one_clear_line(tmp_path: Path, taken: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        addresses = {"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", taken: f"127.0.0.1:{port}"}
        lines = [f"{key}: {address}" for key, address in addresses.items()]
        status, errors = ended(start(written(tmp_path, *lines, "log_level: error", ENGINE)))
    said = [line for line in errors.splitlines() if line.startswith("headgate sidecar: ")]
    assert (status, len(said), "Traceback" in errors) == (1, 1, False)
    assert ("address already in use" in said[0].lower()) or str(port) in said[0]


def test_a_signal_ends_it_in_order(tmp_path: Path) -> None:
    process = start(written(tmp_path, "listen: 127.0.0.1:0", "admin: 127.0.0.1:0", ENGINE))
    assert process.stderr is not None
    assert any("listening on 127.0.0.1:" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    status, errors = ended(process)
    assert (status, "Traceback" in errors) == (0, False)
