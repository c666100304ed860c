"""`headgate endpoints` against an admin port that says what a test wants."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from mesh import endpoints
from sidecar.standing import endpoints as tell
from tests.unit.mesh.test_cli import run
from tests.unit.sidecar.stages.judging import Judged


@contextmanager
def admin(page: bytes, status: int = 200) -> Iterator[str]:
    """Its address."""
    paths: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
    assert set(paths) <= {endpoints.PATH}


def said() -> bytes:
    """By a sidecar whose engine is ejected, of two peers."""
    pod = Judged("panic_threshold_percent: 0")
    pod.hears(1, waiting=3, running=4, utilization=0.456)
    pod.hears(2, "down", why="lost [it]")
    pod.board.ejects("pod-0", 65.0, "pod-1", "pod-2")
    pod.board.call()
    pod.plane.endpoint.load.waiting, pod.plane.endpoint.load.running = 1, 2
    pod.pass_time(2.0)
    return json.dumps(tell(pod.plane)).encode()


def rows(out: str) -> list[str]:
    return [" ".join(line.split()) for line in out.splitlines()]


def test_a_row_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with admin(said()) as address:
        assert run(monkeypatch, "endpoints", "--admin", address) == 0
    head, *found = rows(capsys.readouterr().out)
    assert head == "pod kind address state reason until voters in flight waiting+running utilization heard"
    assert found == [
        "pod-0 engine 127.0.0.1:8000 ejected consecutive_5xx 28 s pod-1 pod-2 0 3 - -",
        "pod-1 peer 10.0.0.1:80 serving - - - 0 7 0.46 2.0 s",
        "pod-2 peer 10.0.0.2:80 down lost [it] - - 0 0 0.00 2.0 s",
    ]


def test_json_is_what_came(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = said()
    with admin(page) as address:
        assert run(monkeypatch, "endpoints", "--json", "--admin", address + "/") == 0
    assert capsys.readouterr().out.encode() == page + b"\n"


def test_of_another_version_what_is_there_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = b'[{"pod": "a\\u001b[1mb", "until_s": "soon", "voters": 7, "load": {"waiting": null}, "new": 1}]'
    with admin(page) as address:
        assert run(monkeypatch, "endpoints", "--admin", address) == 0
    assert rows(capsys.readouterr().out)[1] == "a?[1mb" + " -" * 10


@pytest.mark.parametrize("page", [b"live", b"{}", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_list_of_endpoints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: bytes
) -> None:
    with admin(page) as address:
        assert run(monkeypatch, "endpoints", "--admin", address) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == "the answer is no list of endpoints: is it a sidecar's admin port?\n"


def test_what_is_no_admin_port(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with admin(b"?", 404) as address:
        assert run(monkeypatch, "endpoints", "--admin", address) == 1
    told = f"{address}/debug/endpoints answers 404: is it a sidecar's admin port?\n"
    assert capsys.readouterr().err == told


def test_who_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with admin(b"[]") as address:
        """Nobody listens there after this."""
    assert run(monkeypatch, "endpoints", "--admin", address) == 1
    assert capsys.readouterr().err == f"{address}/debug/endpoints cannot be reached: Connection refused\n"


def test_no_proxy_stands_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    with admin(b"[]") as address:
        assert endpoints.fetch(address) == b"[]"


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1:9911", "https://a:1", "http://", "http://a:0", "http://a:x", "http://a/b", "http://u@a"],
)
def test_what_is_no_address(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str
) -> None:
    assert run(monkeypatch, "endpoints", "--admin", address) == 64
    assert capsys.readouterr().err == f"--admin: expected http://HOST:PORT, got {address!r}\n"
