"""Rules that structs keep by themselves."""

import pytest

from sidecar.errors import ConfigError
from sidecar.settings import Config, Engine, EngineMetrics, Limit, Mesh
from sidecar.values import parse_address


def test_headers_are_case_insensitive() -> None:
    assert Limit(name="a", limit=1, by=("header:X-Team",)).by == ("header:x-team",)


def test_the_engines_load_is_asked_of_the_engine_unless_told_otherwise() -> None:
    address, other = parse_address("127.0.0.1:8000"), parse_address("127.0.0.1:8002")
    assert Engine(address=address).metrics_address == address
    engine = Engine(address=address, metrics=EngineMetrics(address=other, interval_s=2))
    assert (engine.metrics_address, engine.metrics.max_age_s) == (other, 6)
    nowhere = EngineMetrics(address=parse_address("127.0.0.1:0"))
    with pytest.raises(ConfigError, match=r"engine\.metrics\.address: port 0"):
        Config(engine=Engine(address=address, metrics=nowhere))


def test_rules_hold_without_a_file() -> None:
    engine = Engine(address=parse_address("127.0.0.1:8000"))
    assert Config(engine=engine).tenants[0].name == "anonymous"
    with pytest.raises(ConfigError, match="health_listen: is the same address as admin"):
        Config(engine=engine, health_listen=parse_address("127.0.0.1:9911"))


def test_a_mesh_meets_in_redis_or_is_listed() -> None:
    engine, peer = Engine(address=parse_address("127.0.0.1:8000")), parse_address("10.0.0.2:15000")
    with pytest.raises(ConfigError, match="mesh: needs redis, or both"):
        Config(engine=engine, mesh=Mesh(pod="a", peers=(peer,)))
    assert Config(engine=engine, mesh=Mesh(pod="a", peers=(peer,), secret_file="s")).redis is None
