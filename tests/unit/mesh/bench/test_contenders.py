"""What would be started for each contender. That it serves: integration."""

from collections import Counter
from hashlib import sha256
from itertools import count
from pathlib import Path

import pytest
import yaml

from mesh.bench import contenders
from mesh.bench.workload import Ask, stock
from mesh.local import machine, plan
from mesh.local.plan import Options, Part
from sidecar import config

TRAFFIC = [stock("premium", 1.0, tenant="acme", key="secret"), stock("batch", 1.0, tenant="night", key="low")]
WORDS = ("--engine", "fake")


@pytest.fixture(autouse=True)
def binaries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_envoy", lambda: Path("/bin/envoy"))
    monkeypatch.setattr(machine, "find_valkey", lambda: Path("/bin/valkey-server"))


def parts(name: str, folder: Path, *, pods: int = 2) -> list[Part]:
    layout = plan.lay_out(Options(pods=pods), count(20001))
    tenants = contenders.tenants_of(TRAFFIC)
    return list(contenders.parts(contenders.ALL[name], layout, WORDS, folder, tenants))


@pytest.mark.parametrize("name", contenders.ALL)
def test_every_contender_has_the_same_engines(name: str, tmp_path: Path) -> None:
    found = [part for part in parts(name, tmp_path) if part.name.startswith("pod-")]
    assert len(found) == 2
    assert all("fake" in part.argv for part in found)


@pytest.mark.parametrize("name", contenders.ALL)
def test_what_stands_before_the_engines(name: str, tmp_path: Path) -> None:
    kinds = Counter(part.name.partition("-")[0] for part in parts(name, tmp_path))
    ours = name.startswith("headgate")
    assert kinds["sidecar"] == (2 if ours else 0)
    assert kinds["envoy"] == (0 if name.startswith("engine") else 1)
    assert kinds["valkey"] == (1 if ours else 0)


def test_sidecars_of_several_engines_are_a_mesh(tmp_path: Path) -> None:
    store = next(part for part in parts("headgate", tmp_path) if part.name == "valkey")
    members = [config.load(tmp_path / f"sidecar-pod-{n}.yaml", {}) for n in (0, 1)]
    assert [each.mesh and each.mesh.pod for each in members] == ["pod-0", "pod-1"]
    for each in members:
        assert each.redis is not None
        assert f"{each.redis.url}".endswith(f":{store.argv[store.argv.index('--port') + 1]}/0")


def test_one_sidecar_needs_no_mesh(tmp_path: Path) -> None:
    assert "valkey" not in {part.name for part in parts("headgate", tmp_path, pods=1)}
    assert config.load(tmp_path / "sidecar-pod-0.yaml", {}).mesh is None


def test_a_sidecar_has_the_defaults_and_knows_who_asks(tmp_path: Path) -> None:
    parts("headgate", tmp_path)
    settings = config.load(tmp_path / "sidecar-pod-0.yaml", {})
    assert settings.admission.mode == "on"
    tenants = {tenant.name: (tenant.cls, tenant.key_sha256) for tenant in settings.tenants}
    assert tenants["acme"] == ("premium", (sha256(b"secret").hexdigest(),))
    assert tenants["night"] == ("batch", (sha256(b"low").hexdigest(),))


def test_admission_can_be_off(tmp_path: Path) -> None:
    parts("headgate-off", tmp_path)
    assert config.load(tmp_path / "sidecar-pod-0.yaml", {}).admission.mode == "off"


def test_keys_are_in_no_file(tmp_path: Path) -> None:
    parts("headgate", tmp_path)
    assert not [file for file in tmp_path.iterdir() if "secret" in file.read_text()]


def test_envoy_is_before_the_sidecars_where_there_are_any(tmp_path: Path) -> None:
    parts("headgate", tmp_path)
    ours = yaml.safe_load((tmp_path / plan.ENVOY_FILE).read_text())
    parts("fifo", tmp_path)
    theirs = yaml.safe_load((tmp_path / plan.ENVOY_FILE).read_text())
    assert ours["static_resources"]["clusters"][0]["name"] == "pods"
    assert theirs["static_resources"]["clusters"][0]["name"] == "engines"


def test_a_tenant_is_of_one_class() -> None:
    with pytest.raises(ValueError, match="acme"):
        contenders.tenants_of([*TRAFFIC, stock("batch", 1.0, tenant="acme", key="secret")])


def test_a_tenant_with_several_loads_is_listed_once() -> None:
    assert len(contenders.tenants_of([*TRAFFIC, *TRAFFIC])) == 2


@pytest.mark.parametrize(("cls", "priority"), [("premium", 0), ("standard", 1), ("batch", 2)])
def test_an_answers_length_hangs_on_its_ask_alone(cls: str, priority: int) -> None:
    ask = Ask(0.0, stock(cls, 1.0), 10, 7)
    bodies = {
        contender.name: contenders.extra_body(contender)(ask) for contender in contenders.ALL.values()
    }
    assert {body["seed"] for body in bodies.values()} == {7}
    assert bodies["engine-64"]["priority"] == priority
    assert "priority" not in bodies["headgate"]


def direct(folder: Path, *, faults: bool) -> list[Part]:
    layout = plan.lay_out(Options(pods=2, faults=faults), count(20001))
    bare = contenders.Contender(name="x", says="", admission={}, gateway=False)
    return list(contenders.parts(bare, layout, WORDS, folder, []))


def test_sidecars_need_no_gateway(tmp_path: Path) -> None:
    assert "envoy" not in {part.name for part in direct(tmp_path, faults=False)}


def test_engines_are_told_to_fail_where_nobody_else_listens(tmp_path: Path) -> None:
    engines = [part for part in direct(tmp_path, faults=True) if part.name.startswith("pod-")]
    ports = [part.argv[part.argv.index("--faults") + 1] for part in engines]
    words = [word for part in engines for word in part.argv]
    assert [words.count(port) for port in ports] == [1, 1]
    assert not [part for part in direct(tmp_path, faults=False) if "--faults" in part.argv]
