"""The command line of the plain tool: what it makes of its words, and how it ends."""

import sys
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
    assert premium.key == ""


def test_words_shape_the_traffic(monkeypatch: pytest.MonkeyPatch, wanted: list[command.Wanted]) -> None:
    words = "--rate 9 --class premium=1 --class batch=2 --key batch=a=b --key every"
    more = "--prompt 20 --prompt-sigma 0 --prompt-max 30 --answer 7 --no-stream --retries 0"
    assert run(monkeypatch, *words.split(), *more.split()) == 0
    premium, batch = wanted[0].traffic()
    assert (premium.rate, batch.rate) == pytest.approx((3.0, 6.0))
    assert (premium.key, batch.key) == ("every", "a=b")
    assert (batch.prompt.median, batch.prompt.sigma, batch.prompt.most) == (20, 0, 30)
    assert (batch.answer, batch.stream, batch.retries) == (7, False, 0)
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
