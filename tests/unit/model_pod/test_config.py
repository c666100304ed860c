"""The command line: what is accepted, and what a wrong flag is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_pod.config import Address, parse


def test_defaults_of_the_fake_engine(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    settings = parse(["--engine", "fake"])
    assert (settings.served_model_name, settings.listen) == ("fake", Address("127.0.0.1", 8000))
    assert (settings.health_listen, settings.cache_dir) == (None, Path("/somewhere/headgate"))
    assert (settings.costs.step_ms, settings.costs.kv_tokens, settings.max_running) == (8.0, 120_000, 256)
    assert settings.lengths.output_median == 200


def test_every_constant_of_the_latency_model_is_a_flag():
    argv = ["--engine", "fake", "--step-ms", "1.5", "--prefill-chunk", "64", "--output-sigma", "0"]
    settings = parse(argv)
    assert (settings.costs.step_ms, settings.costs.prefill_chunk) == (1.5, 64)
    assert settings.lengths.output_sigma == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("[::1]:80", Address("::1", 80)), ("0.0.0.0:0", Address("0.0.0.0", 0)), ("pod:1", Address("pod", 1))],
)
def test_addresses(text, expected):
    settings = parse(["--engine", "fake", "--listen", text])
    assert settings.listen == expected
    assert str(settings.listen) == text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--engine"),
        (["--engine", "real"], "--engine"),
        (["--engine", "transformers"], "--model"),
        (["--engine", "transformers", "--model", "x", "--tiny"], "--model"),
        (["--engine", "transformers", "--model", "/nowhere"], "--model: /nowhere is not a model's folder"),
        (["--engine", "fake", "--tiny"], "--tiny"),
        (["--engine", "transformers", "--tiny", "--priority-scheduling"], "--priority-scheduling"),
        (["--engine", "transformers", "--tiny", "--faults", "h:1"], "--faults belongs to --engine fake"),
        (["--engine", "fake", "--faults", "1"], "--faults"),
        (["--engine", "fake", "--listen", "8000"], "--listen"),
        (["--engine", "fake", "--listen", "::1:80"], "brackets"),
        (["--engine", "fake", "--listen", "host:65536"], "--listen"),
        (["--engine", "fake", "--health-listen", "host:"], "--health-listen"),
        (["--engine", "fake", "--max-running", "0"], "--max-running"),
        (["--engine", "fake", "--kv-tokens", "many"], "--kv-tokens"),
        (["--engine", "fake", "--step-ms", "-1"], "--step-ms"),
        (["--engine", "fake", "--step-ms", "nan"], "--step-ms"),
        (["--engine", "fake", "--step", "1"], "--step"),
    ],
)
def test_a_wrong_flag_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(argv)
    assert caught.value.code == 64
    assert message in capsys.readouterr().err


def test_help_says_what_is_printed(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    assert "ready http://" in text
    assert "--prefill-token-ms" in text
