"""The search itself: it runs, for a short while, and what it finds becomes a short seed."""

import importlib.util
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.fuzz.__main__ import breaks, keep, search
from tests.fuzz.minimise import minimise
from tests.fuzz.properties import PROPERTIES, Broken
from tests.harness.processes import ROOT, missing

RUNS = 1000  # of each property, with libFuzzer's first choice of them


def is_meant_for_this_machine() -> bool:
    """There are wheels of atheris for some machines alone; pyproject.toml says for which."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (atheris,) = (r for r in map(Requirement, extras["test"]) if r.name == "atheris")
    return atheris.marker is None or atheris.marker.evaluate()


@pytest.mark.parametrize("target", PROPERTIES)
def test_a_short_search_finds_nothing(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        if is_meant_for_this_machine():
            missing("atheris is not installed")
        pytest.skip("there is no atheris for this machine")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = search(target, tmp_path, [f"-runs={RUNS}", "-seed=1"], output)
        try:
            code = process.wait()
        finally:
            process.kill()
            process.wait()
    said = log.read_text(errors="replace")
    assert code == 0, said[-4000:]
    assert f"Done {RUNS} runs" in said


def test_what_is_found_is_kept_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def check(data: bytes) -> None:
        if b"a" in data and b"b" in data.partition(b"a")[2]:
            raise Broken

    monkeypatch.setattr("tests.fuzz.__main__.PROPERTIES", {"requests": check})
    (tmp_path / "requests").mkdir()
    found = tmp_path / "crash"
    found.write_bytes(b"xx" * 300 + b"a" + b"yy" * 300 + b"b" + b"z" * 99)
    assert breaks("requests", found.read_bytes())
    seed = keep("requests", found, tmp_path)
    assert seed.read_bytes() == b"ab"
    assert seed.name.startswith("found-")


def test_making_short_ends() -> None:
    tries = []
    assert minimise(b"abc" * 100, lambda data: tries.append(data) or False, most_tries=50) == b"abc" * 100  # type: ignore[func-returns-value]
    assert len(tries) == 50
    assert minimise(b"", lambda data: True) == b""
    assert minimise(b"abc", lambda data: True) == b""
