"""What the machine offers: ports that are free, folders that do not stay behind."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mesh.local import machine

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_a_port_in_use_is_named() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(machine.PortInUse, match=f"port {port} on {HOST} is in use"):
            machine.check_free(HOST, port)
    machine.check_free(HOST, port)


def test_free_ports_are_different_and_free() -> None:
    ports = machine.free_ports(HOST, 20)
    assert len(set(ports)) == 20
    for port in ports:
        machine.check_free(HOST, port)


@pytest.mark.skipif(not machine._OUTGOING.exists(), reason="the kernel does not say which ports are outgoing")
def test_free_ports_are_given_to_no_outgoing_connection() -> None:
    first, last = map(int, machine._OUTGOING.read_text().split())
    with socket.create_server((HOST, 0)) as server, socket.create_connection(server.getsockname()) as caller:
        assert first <= caller.getsockname()[1] <= last
    assert [port for port in machine.free_ports(HOST, 100) if first <= port <= last] == []


@pytest.mark.parametrize("outgoing", ["1024 65535", "10000 65535", "10003 65535", "1024 65530", None])
def test_where_the_kernel_keeps_few_ports_or_does_not_say_others_are_found(
    outgoing: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "range"
    if outgoing:
        file.write_text(f"{outgoing}\n")
    monkeypatch.setattr(machine, "_OUTGOING", file)
    assert len(set(machine.free_ports(HOST, 20))) == 20


def test_a_host_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        machine.free_ports("192.0.2.1", 1)


def test_nobody_answers_is_none() -> None:
    assert machine.get(f"http://{HOST}:{machine.free_ports(HOST, 1)[0]}/") is None


def test_the_folder_is_ours_alone_and_goes_with_the_block(tmp_path: Path) -> None:
    with machine.private_folder() as folder:
        assert folder.parent == tmp_path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_goes_when_the_block_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), machine.private_folder():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_and_one_left_behind_is_removed(tmp_path: Path) -> None:
    killed = "import os; from mesh.local import machine\nwith machine.private_folder() as f: os._exit(0)"
    subprocess.run([sys.executable, "-c", killed], env={**os.environ, "TMPDIR": str(tmp_path)}, check=True)
    (left_behind,) = tmp_path.iterdir()
    with machine.private_folder() as first:
        assert not left_behind.exists()
        with machine.private_folder():
            assert first.exists()


def test_binaries_of_the_machine_and_of_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_from_wheel", lambda distribution, name: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(machine.MissingBinary, match="valkey-server"):
        machine.find_valkey()
    with pytest.raises(machine.MissingBinary, match="--no-envoy"):
        machine.find_envoy()
    for name in ("redis-server", "envoy"):
        (tmp_path / name).touch(mode=0o755)
    assert machine.find_valkey() == tmp_path / "redis-server"
    assert machine.find_envoy() == tmp_path / "envoy"


def test_valkey_of_the_machine_and_envoy_of_the_wheel_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_from_wheel", lambda distribution, name: Path("/wheel") / name)
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("valkey-server", "envoy"):
        (tmp_path / name).touch(mode=0o755)
    assert machine.find_valkey() == tmp_path / "valkey-server"
    assert machine.find_envoy() == Path("/wheel/envoy")
