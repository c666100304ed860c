"""The command line of the plain tool: what it makes of its words, and how it ends."""

import http.server
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mesh import exits
from mesh.bench import command
from mesh.bench.command import app
from mesh.bench.workload import BATCH, PREMIUM, STANDARD
from tests.harness.processes import HOST, free_port


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int | str | None:
    monkeypatch.setattr(sys, "argv", ["headgate bench", *words])
    with pytest.raises(SystemExit) as leaving:
        exits.run(app, "headgate bench")
    return leaving.value.code


@pytest.fixture
def wanted(monkeypatch: pytest.MonkeyPatch) -> list[command.Wanted]:
    """What would be run."""
    seen: list[command.Wanted] = []
    monkeypatch.setattr(command, "run", lambda wanted, json_file, plots: seen.append(wanted))
    return seen


def test_the_stock_mix_is_the_default(monkeypatch: pytest.MonkeyPatch, wanted: list[command.Wanted]) -> None:
    assert run(monkeypatch) == 0
    premium, standard, batch = wanted[0].traffic()
    assert [each.cls for each in (premium, standard, batch)] == [PREMIUM, STANDARD, BATCH]
    assert (premium.rate, standard.rate, batch.rate) == pytest.approx((1.0, 2.5, 1.5))
    assert (premium.prompt.median, premium.answer, premium.stream, premium.retries) == (800, None, True, 2)
    assert (premium.key, premium.patience_s, batch.patience_s) == ("", 5, 60)


def test_words_shape_the_traffic(monkeypatch: pytest.MonkeyPatch, wanted: list[command.Wanted]) -> None:
    words = "--rate 9 --class premium=1 --class batch=2 --key batch=a=b --key every"
    more = "--prompt 20 --prompt-sigma 0 --prompt-max 30 --answer 7 --no-stream --retries 0 --patience 8"
    assert run(monkeypatch, *words.split(), *more.split()) == 0
    premium, batch = wanted[0].traffic()
    assert (premium.rate, batch.rate) == pytest.approx((3.0, 6.0))
    assert (premium.key, batch.key) == ("every", "a=b")
    assert (batch.prompt.median, batch.prompt.sigma, batch.prompt.most) == (20, 0, 30)
    assert (batch.answer, batch.stream, batch.retries, batch.patience_s) == (7, False, 0, 8)
    assert "every" not in str(wanted[0].about("m"))


@pytest.mark.parametrize(
    "words",
    [
        "--rate 0",
        "--duration -1",
        "--class gold=1",
        "--class premium",
        "--class premium=much",
        "--class premium=0",
        "--class premium=nan",
        "--key premium=a\u00e9",
        "--url host:8000",
        "--retries -1",
        "--bogus",
        "bogus",
    ],
)
def test_wrong_use_exits_with_64(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    assert run(monkeypatch, *words.split()) == exits.USAGE


def test_a_key_is_not_said_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--key", "premium=se cret") == exits.USAGE
    assert "cret" not in capsys.readouterr().err


def test_plots_without_their_library_are_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "mesh.bench.plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert run(monkeypatch, "--plots", "any") == exits.USAGE
    assert "pip install 'headgate[bench]'" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--model", "m", "--duration", "1", "--retries", "0"]])
def test_a_server_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    url = f"http://{HOST}:{free_port()}"
    assert run(monkeypatch, "--url", url, *words) == exits.FAILED
    said: Any = capsys.readouterr()
    assert f"headgate bench: {url}" in said.err


class Models(http.server.BaseHTTPRequestHandler):
    """Says `server.says` to those who know the key, and hears no one else."""

    def do_GET(self) -> None:
        if self.headers["authorization"] != "Bearer secret" or self.path != "/v1/models":
            self.send_error(401)
            return
        self.wfile.write(self.server.says)  # type: ignore[attr-defined]  # set by the fixture

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    with http.server.HTTPServer((HOST, 0), Models) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def url_of(server: Any) -> str:
    return f"http://{HOST}:{server.server_address[1]}"


def test_the_model_is_the_first_that_the_server_lists(server: Any) -> None:
    server.says = b'HTTP/1.0 200 OK\r\n\r\n{"data": [{"id": "one"}, {"id": "two"}]}'
    assert command.first_model(url_of(server), "secret") == "one"


@pytest.mark.parametrize("proxy", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked(server: Any, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    server.says = b'HTTP/1.0 200 OK\r\n\r\n{"data": [{"id": "one"}]}'
    monkeypatch.setenv(proxy, f"http://{HOST}:{free_port()}")
    assert command.first_model(url_of(server), "secret") == "one"


@pytest.mark.parametrize(
    ("says", "words"),
    [
        (b"HTTP/1.0 200 OK\r\n\r\n{}", "say --model"),
        (b'HTTP/1.0 200 OK\r\n\r\n{"data": []}', "say --model"),
        (b"HTTP/1.0 200 OK\r\n\r\n<html>", "say --model"),
        (b"HTTP/1.0 404 Not Found\r\n\r\n", "404"),
        (b"SMTP\r\n", "SMTP"),
        (b"", "closed"),
    ],
)
def test_what_is_no_list_of_models_is_told(server: Any, says: bytes, words: str) -> None:
    server.says = says
    with pytest.raises(OSError, match=words) as raised:
        command.first_model(url_of(server), "secret")
    assert f"{url_of(server)}/v1/models: " in str(raised.value)


def test_a_key_that_is_not_known_is_told(server: Any) -> None:
    with pytest.raises(OSError, match="401"):
        command.first_model(url_of(server), "guess")
