"""Real processes for tests: found, started on free loopback ports, waited for, and always ended.

What is missing on a machine skips a test with its reason; under CI=true it fails it, since a suite that skips
what it exists for has not passed.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, NoReturn, TypeVar

import pytest

from mesh.local import machine

HOST: Final = "127.0.0.1"
ROOT: Final = Path(__file__).parents[2]
# Straight to loopback, whatever proxy the environment names.
_OPENER: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))

T = TypeVar("T")


def missing(what: str) -> NoReturn:
    """Something the test needs is not installed."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def valkey_binary() -> Path:
    return _found(machine.find_valkey)


def envoy_binary() -> Path:
    return _found(machine.find_envoy)


def _found(find: Callable[[], Path]) -> Path:
    try:
        return find()
    except machine.MissingBinary as error:
        missing(str(error))


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Different ports on which nothing listens, and which no outgoing connection is given."""
    return machine.free_ports(HOST, count)


def wait_until(condition: Callable[[], T], *, within_s: float = 20.0, what: str = "") -> T:
    """The first true value of `condition`; fails the test if there is none in time."""
    end = time.monotonic() + within_s
    while not (value := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {within_s:g} s: {what or condition}")
        time.sleep(0.02)
    return value


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    return machine.get(url) is not None


def get(url: str, *, within_s: float = 5.0) -> bytes:
    """The body at `url`; raises if the answer is not a success."""
    with _OPENER.open(url, timeout=within_s) as answer:
        body: bytes = answer.read()
        return body


def listens(port: int) -> bool:
    """Whether something accepts connections on `port`."""
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@dataclass
class Running:
    """A process of a test; its output, both streams, is in a file."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        """What it has written so far."""
        return Path(self.output.name).read_text(errors="replace")

    def fail_if_ended(self) -> None:
        if self.process.poll() is not None:
            pytest.fail(f"{self.process.args!r} ended with {self.process.returncode}:\n{self.text()[-4000:]}")

    def wait_for(self, condition: Callable[[], T], *, within_s: float = 20.0, what: str = "") -> T:
        """As wait_until; fails at once, with its output, if the process ends meanwhile."""

        def check() -> T:
            self.fail_if_ended()
            return condition()

        return wait_until(check, within_s=within_s, what=what)

    def wait_for_line(self, part: str, *, within_s: float = 60.0) -> str:
        """The first whole line that contains `part`."""

        def find() -> str | None:
            *lines, _ = self.text().split("\n")
            return next((line for line in lines if part in line), None)

        found = self.wait_for(find, within_s=within_s, what=f"a line with {part!r}")
        assert found is not None
        return found

    def end(self, *, within_s: float = 10.0) -> int:
        """SIGTERM, and SIGKILL if that is not enough; the exit status."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(within_s)
        self.kill()
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL, to all it has started as well."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(argv: Sequence[str | Path], env: Mapping[str, str] | None = None) -> Iterator[Running]:
    """Run a command from the root of the repository; it is ended with the block."""
    with tempfile.NamedTemporaryFile(prefix="headgate-test-", suffix=".log") as output:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        started = Running(process, output)
        try:
            yield started
        finally:
            started.end()


@contextlib.contextmanager
def valkey(port: int, *options: str) -> Iterator[Running]:
    """A fresh Valkey that listens on `port`; `options` are further words of its command line."""
    address = ("--bind", HOST, "--port", str(port))
    argv = [valkey_binary(), *address, "--save", "", "--appendonly", "no", *options]
    with running(argv) as server:
        server.wait_for_line("Ready to accept connections")
        yield server


@contextlib.contextmanager
def envoy(config: Path, admin: str) -> Iterator[Running]:
    """Envoy with the file `config`, whose admin listener is at `admin` (http://…), once it is ready."""
    quiet = ["--disable-hot-restart", "--concurrency", "2", "--log-level", "warning"]
    argv = [envoy_binary(), "-c", config, *quiet]
    with running(argv) as gateway:
        gateway.wait_for(lambda: answers(f"{admin}/ready"), what="Envoy is ready")
        yield gateway
