"""Envoy itself accepts every configuration that we ship or render."""

import subprocess
from importlib.resources.abc import Traversable
from pathlib import Path

import pytest

from mesh import gateway
from mesh.bench import envoys
from mesh.gateway import Address, Sidecar
from tests.harness.processes import envoy_binary

pytestmark = pytest.mark.integration

SHIPPED = sorted(
    (file for file in gateway.shipped_folder().iterdir() if file.name.endswith(".yaml")),
    key=lambda file: file.name,
)


def validate(config: Path) -> None:
    argv = [envoy_binary(), "--mode", "validate", "-c", config, "--log-level", "warning"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    # Deprecated fields and limits that are not set are warnings.
    assert "[warning]" not in result.stderr, result.stderr


def test_there_is_something_shipped() -> None:
    assert [file.name for file in SHIPPED] == ["gateway.yaml", "sidecar-baseline.yaml"]


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_shipped_files_are_valid(file: Traversable, tmp_path: Path) -> None:
    copy = tmp_path / file.name
    copy.write_text(file.read_text("utf-8"), "utf-8")
    validate(copy)


@pytest.mark.parametrize("collector", [None, Address("127.0.0.1", 4318)], ids=["untraced", "traced"])
def test_rendered_files_are_valid(collector: Address | None, tmp_path: Path) -> None:
    sidecars = [Sidecar(Address("10.0.0.1", 8080), 9912), Sidecar(Address("::1", 8080), 9912)]
    document = gateway.render(
        gateway.shipped(),
        listen=Address("127.0.0.1", 8000),
        admin=Address("127.0.0.1", 9901),
        sidecars=sidecars,
        collector=collector,
    )
    file = tmp_path / "envoy.yaml"
    file.write_text(gateway.dump(document), "utf-8")
    validate(file)


@pytest.mark.parametrize("build", [envoys.adaptive, envoys.admission, envoys.fifo, envoys.outlier])
def test_what_we_are_compared_with_is_valid(build: envoys.Builder, tmp_path: Path) -> None:
    listen, admin, *engines = (Address("127.0.0.1", port) for port in range(8000, 8004))
    file = tmp_path / "envoy.yaml"
    file.write_text(gateway.dump(build(listen, admin, engines)), "utf-8")
    validate(file)
