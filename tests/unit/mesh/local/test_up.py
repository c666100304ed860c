"""What `headgate up` refuses before it starts anything."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.local import machine, up
from mesh.local.plan import Binaries, Options


@pytest.fixture(autouse=True)
def _everything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_valkey", lambda: Path("/bin/valkey-server"))
    monkeypatch.setattr(machine, "find_envoy", lambda: Path("/bin/envoy"))


@pytest.fixture
def free() -> int:
    return machine.free_ports("127.0.0.1", 1)[0]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_what_is_needed_is_found(free: int) -> None:
    assert up.check(Options(port=free)) == Binaries(Path("/bin/valkey-server"), Path("/bin/envoy"))


def test_what_is_not_needed_is_not_looked_for(
    free: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Path:
        raise machine.MissingBinary

    monkeypatch.setattr(machine, "find_valkey", fail)
    monkeypatch.setattr(machine, "find_envoy", fail)
    options = Options(port=free, redis=f"redis://127.0.0.1:{taken}/0", envoy=False)
    assert up.check(options) == Binaries(None, None)


def test_a_port_in_use_is_named_with_its_flag(taken: int) -> None:
    with pytest.raises(up.BadOption, match=f"--port: port {taken} on 127.0.0.1 is in use"):
        up.check(Options(port=taken))


def test_a_redis_that_is_not_there_is_named_without_its_password(free: int) -> None:
    nobody = machine.free_ports("127.0.0.1", 1)[0]
    with pytest.raises(up.BadOption, match=f"--redis: cannot connect to 127.0.0.1:{nobody}") as refused:
        up.check(Options(port=free, redis=f"redis://:secret@127.0.0.1:{nobody}/0"))
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "127.0.0.1:6379", "redis://127.0.0.1:none/0"])
def test_what_is_no_redis_url_is_refused(free: int, url: str) -> None:
    with pytest.raises(up.BadOption, match="--redis: not a "):
        up.check(Options(port=free, redis=url))


@pytest.mark.parametrize("made", [None, "folder", "file"])
def test_what_is_no_models_folder_is_refused(free: int, made: str | None, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if made == "folder":
        model.mkdir()
    elif made == "file":
        model.touch()
    with pytest.raises(up.BadOption, match=f"--model: {model} is not a model's folder"):
        up.check(Options(port=free, model=str(model)))


def test_a_models_folder_is_taken(free: int, tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    up.check(Options(port=free, model=str(tmp_path)))


def test_a_bad_option_exits_with_64_and_names_it(
    free: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Options(port=free, model=str(tmp_path / "none"))
    assert up.up(options, as_json=False, verbose=False) == 64
    assert capsys.readouterr().err.startswith("headgate up: --model: ")


def test_a_model_for_the_fake_engine_is_refused(free: int) -> None:
    with pytest.raises(up.BadOption, match="--model"):
        up.check(Options(port=free, engine="fake", model="/models/m"))
