"""`headgate bench` as its users run it: against a sidecar and the fake engine, as a process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.sidecars import fake_pod, sidecar, sidecar_settings

pytestmark = pytest.mark.integration

LIMIT_S = 60


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "mesh", "bench", *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_a_short_run_shows_what_callers_saw(tmp_path: Path) -> None:
    asked = "--rate 20 --duration 2 --seed 4 --prompt 50 --prompt-sigma 0 --answer 10"
    with fake_pod() as pod, sidecar(tmp_path, sidecar_settings(pod.port)) as beside:
        done = bench("--url", beside.url, *asked.split(), "--json", "-", "--plots", str(tmp_path))
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        score = found["results"][0]["score"]
        assert found["about"]["model"] == "fake"
        assert list(score["classes"]) == ["premium", "standard", "batch"]
        assert score["total"]["origins"] > 10
        assert score["total"]["served"] == 1
        assert sum(score["series"]["tokens"]) == 10 * score["total"]["origins"]
        assert "premium" in done.stderr  # the table: stdout is for the figures
        assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
        # Every caller was heard out, and said who it was.
        assert {decision["status"] for decision in beside.decisions()} == {200}


def test_the_table_is_what_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    with fake_pod() as pod:
        url = f"{pod.url}/v1"
        asked = "--rate 10 --duration 1 --class batch=1 --no-stream --answer 5 --prompt 20"
        done = bench("--url", url, *asked.split(), "--json", str(file))
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.strip()]
    assert lines[0] == ["batch"]
    assert ["served", "100", "%"] in lines
    score = json.loads(file.read_text())["results"][0]["score"]
    assert score["total"]["served"] == 1
    assert score["total"]["ttft_s"]["p50"] is None
