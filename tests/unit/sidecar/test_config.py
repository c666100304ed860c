"""What the configuration file may say, and the sentence that refuses the rest."""

from pathlib import Path

import pytest

from sidecar.config import decode, load, needs_restart, redacted, schema
from sidecar.errors import ConfigError
from sidecar.values import Address

HASH = "ab" * 32
ENGINE = "engine: {address: '127.0.0.1:8000'}\n"

EXAMPLE = """
listen: 127.0.0.1:8080
admin: 127.0.0.1:9911
health_listen: 127.0.0.1:9912
engine:
  address: 127.0.0.1:8000
  health: {kind: grpc, address: 127.0.0.1:8001, interval_s: 5}
redis: {url: redis://127.0.0.1:6379/0, timeout_ms: 20}
mesh: {name: demo, pod: pod-0, advertise: 127.0.0.1:8080}
trusted_proxies: []
unknown_keys: allow
tenants:
  - {name: acme, key_sha256: ["${ACME}"], class: premium, weight: 2}
  - {name: anonymous, class: standard}
limits:
  - {name: requests, by: [tenant], unit: requests, limit: 600, window_s: 60, burst: 60}
  - {name: tokens, by: [tenant, model], unit: tokens, limit: 200000, window_s: 60}
  - {name: streams, by: [tenant], unit: concurrent, limit: 32, on_store_down: local, shadow: false}
"""


def test_the_documented_example() -> None:
    config = decode(EXAMPLE, {"ACME": HASH.upper()})
    assert config.health_listen == Address(host="127.0.0.1", port=9912)
    assert config.engine.health_address == Address(host="127.0.0.1", port=8001)
    assert config.tenants[0].cls == "premium"
    assert config.tenants[0].key_sha256 == (HASH,)
    assert [limit.burst for limit in config.limits] == [60, None, None]


def test_everything_but_the_engine_has_a_default() -> None:
    config = decode(ENGINE, {})
    assert str(config.listen) == "0.0.0.0:8080"
    assert [(t.name, t.cls) for t in config.tenants] == [("anonymous", "standard")]
    assert config.engine.health_address == config.engine.address
    assert list(config.classes) == ["premium", "standard", "batch"]
    assert [one.share for one in config.classes.values()] == [0.4, 0.05, 0.05]
    assert [one.wait_s for one in config.classes.values()] == [1, 3, 30]
    assert config.unbuilt() == []


def test_json_is_read_too() -> None:
    assert decode('{"engine": {"address": "e:1"}, "drain_s": 1.5}', {}).drain_s == 1.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "engine: is required"),
        ("[1]", "expected a mapping, got a list"),
        ("engine: {}", "engine.address: is required"),
        ("engine: 5", "engine: expected a mapping, got one value"),
        (ENGINE + "limts: []", "limts: unknown key; did you mean limits?"),
        (ENGINE + "xyz: []", "xyz: unknown key; known here: listen, admin"),
        (ENGINE + "limits: [{brust: 2}]", "limits[0].brust: unknown key; did you mean burst?"),
        (ENGINE + "classes: {gold: {shares: 1}}", "classes.gold.shares: unknown key; did you mean share?"),
        (ENGINE + "classes: {Gold: {}}", "classes.Gold: expected a class: 1 to 32 of a-z"),
        (ENGINE + "classes: {gold: {}, gold: {}}", "classes.gold: given twice"),
        (ENGINE + "classes: {premium: {share: 0.6}, batch: {share: 0.4}}",
         "classes: the shares sum to 1.05; at most 1 can be guaranteed"),
        (ENGINE + "classes: {gold: {}}\ntenants: [{name: a, class: premium}]",
         "tenants[0].class: there is no class 'premium'; there are gold"),
        (ENGINE + "class_rules: [{class: gold}]",
         "class_rules[0].class: there is no class 'gold'; there are premium, standard, batch"),
        (ENGINE + "drain_s: 1\ndrain_s: 2", "drain_s: given twice, on lines 2 and 3"),
        (ENGINE + "limits: [{name: a, name: b, limit: 1}]", "limits[0].name: given twice"),
        (ENGINE + "limits: [{name: a, limit: 1}, {name: a, limit: 2}]", "limits[1].name: limits[0] is"),
        (ENGINE + "a: b: c", "line 2, column 5: mapping values are not allowed"),
        (ENGINE + "a: [", "line 3, column 1"),
        ("a: \0", "not valid YAML: unacceptable character"),
        (ENGINE + "--- \nb: 1", "expected a single document"),
        (ENGINE + "drain_s: !!python/name:os.system x", "drain_s: YAML tags"),
        (ENGINE + "? [a]\n: 1", "line 2: a key must be text"),
    ],
)
def test_wrong_shapes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(text, {})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("drain_s: .nan", "drain_s"),
        ("drain_s: nan", "drain_s"),
        ("drain_s: inf", "drain_s"),
        ("drain_s: -1", "drain_s"),
        ("drain_s: 0", "drain_s"),
        ("drain_s: soon", "drain_s"),
        ("drain_s: [1]", "drain_s"),
        ("drain_s: ~", "drain_s"),
        ("max_connections: 1.5", "max_connections"),
        ("max_connections: true", "max_connections"),
        ("max_body_bytes: 1", "max_body_bytes"),
        ("max_body_bytes: 4096\nmax_buffered_bytes: 2048", "max_body_bytes"),
        ("listen: '8080'", "listen"),
        ("listen: ':8080'", "listen"),
        ("listen: 'h:70000'", "listen"),
        ("listen: '[::g]:1'", "listen"),
        ("listen: '::1:80'", "listen"),
        ("listen: 'a b:80'", "listen"),
        ("listen: 'unix:'", "listen"),
        ("listen: 127.0.0.1:9911", "admin"),
        ("listen: 127.0.0.1:8000", "engine.address"),
        ("trusted_proxies: [10.0.0.0/8, 10.0.0.1/8]", "trusted_proxies[1]"),
        ("unknown_keys: maybe", "unknown_keys"),
        ("tenants: [{name: 'a b'}]", "tenants[0].name"),
        ("tenants: [{name: a}, {name: a}]", "tenants[1].name"),
        ("tenants: [{name: a, class: gold}]", "tenants[0].class"),
        ("tenants: [{name: a, weight: 0}]", "tenants[0].weight"),
        ("tenants: [{name: a, key_sha256: [abc]}]", "tenants[0].key_sha256[0]"),
        (f"tenants: [{{name: a, key_sha256: [{HASH}]}}, {{name: b, key_sha256: [{HASH}]}}]",
         "tenants[1].key_sha256[0]"),
        ("classes: {batch: {share: 0.7}}", "classes"),
        ("classes: {batch: {share: 1.1}}", "classes.batch.share"),
        ("classes: {batch: {share: -0.1}}", "classes.batch.share"),
        ("classes: {batch: {share: .nan}}", "classes.batch.share"),
        ("classes: {batch: {ceiling: 0}}", "classes.batch.ceiling"),
        ("classes: {batch: {ceiling: 1.5}}", "classes.batch.ceiling"),
        ("classes: {batch: {max_wait_s: 0}}", "classes.batch.max_wait_s"),
        ("classes: {batch: 5}", "classes.batch"),
        ("classes: {'': {}}", "classes"),
        ("classes: {a b: {}}", "classes.a b"),
        (f"classes: {{{'x' * 33}: {{}}}}", f"classes.{'x' * 33}"),
        ("classes: {1: {}}", "classes.1"),
        (f"classes: {{{', '.join(f'c{i}: {{share: 0}}' for i in range(9))}}}", "classes"),
        ("class_rules: [{class: gold}]", "class_rules[0].class"),
        ("class_rules: [{class: batch, route: v1}]", "class_rules[0].route"),
        ("class_rules: [{class: batch, header: {a: ''}}]", "class_rules[0].header.a"),
        ("limits: [{name: a}]", "limits[0].limit"),
        ("limits: [{name: a, limit: 0}]", "limits[0].limit"),
        ("limits: [{name: a, limit: 1, window_s: 0.5}]", "limits[0].window_s"),
        ("limits: [{name: a, limit: 1, by: [tenant, ip]}]", "limits[0].by[1]"),
        ("limits: [{name: a, limit: 1, by: ['header:']}]", "limits[0].by[0]"),
        ("limits: [{name: a, limit: 1, by: [tenant, tenant]}]", "limits[0].by[1]"),
        ("limits: [{name: a, limit: 1, unit: bytes}]", "limits[0].unit"),
        ("limits: [{name: a, limit: 1, unit: concurrent, burst: 2}]", "limits[0].burst"),
        ("redis: {}", "redis"),
        ("redis: {url: ''}", "redis.url"),
        ("engine: {address: 'h:1', kv_tokens: many}", "engine.kv_tokens"),
        ("redis: {url: 'redis://h', url_file: f}", "redis"),
        ("redis: {url: 'http://h'}", "redis.url"),
        ("mesh: {pod: p}", "mesh"),
        ("tenants_from: redis", "tenants_from"),
        ("admission: {overload_status: 500}", "admission.overload_status"),
        ("admission: {mode: maybe}", "admission.mode"),
        ("admission: {max_in_flight: 0}", "admission.max_in_flight"),
        ("admission: {max_queue: -1}", "admission.max_queue"),
        ("admission: {max_queue_bytes: 100}", "admission.max_queue_bytes"),
        ("admission: {queue_timeout_s: 0}", "admission.queue_timeout_s"),
        ("admission: {aging_s: 0}", "admission.aging_s"),
        ("admission: {invited: 1.5}", "admission.invited"),
        ("admission: {preempt: always}", "admission.preempt"),
        ("engine: {address: 'h:1', kv_tokens: 0}", "engine.kv_tokens"),
        ("engine: {address: 'h:1', priority: high}", "engine.priority"),
        ("timeouts: {connect_s: 0}", "timeouts.connect_s"),
        ("telemetry: {access_log: some}", "telemetry.access_log"),
        ("engine: {address: 'h:1', health: {expected_statuses: []}}", "engine.health.expected_statuses"),
        ("engine: {address: 'h:1', health: {expected_statuses: [1]}}", "engine.health.expected_statuses[0]"),
        ("engine: {address: 'h:1', health: {kind: udp}}", "engine.health.kind"),
        ("outlier: 5", "outlier"),
        ("outlier: {max_ejection_percent: 101}", "outlier.max_ejection_percent"),
        ("retry: {statuses: [404]}", "retry.statuses[0]"),
        ("mesh: {pod: p, peers: [h]}", "mesh.peers[0]"),
    ],
)  # fmt: skip
def test_wrong_values_name_their_key(text: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(text if text.startswith("engine") else ENGINE + text, {})
    assert caught.value.path == path


def test_an_engine_cannot_be_reached_at_port_0() -> None:
    with pytest.raises(ConfigError, match=r"engine\.address"):
        decode("engine: {address: 'h:0'}", {})


def test_words_mean_what_they_look_like() -> None:
    text = "admission: {mode: off}\nmesh: {pod: 007, spill: off}\nredis: {url: 'redis://h'}\ndrain_s: 1e2"
    config = decode(ENGINE + text, {})
    assert config.admission.mode == "off"
    assert config.mesh is not None
    assert (config.mesh.pod, config.mesh.spill, config.drain_s) == ("007", "off", 100)


def test_a_wrong_value_is_told_what_was_expected() -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.slow_ms: expected milliseconds above 0.*, got 'x'"):
        decode(ENGINE + "telemetry: {slow_ms: x}", {})


def test_null_is_absent_and_quoted_it_is_text() -> None:
    assert decode(ENGINE + "state_file: ~", {}).state_file is None
    assert decode(ENGINE + "state_file: '~'", {}).state_file == "~"


def test_environment_variables() -> None:
    text = (
        "listen: '${IP}:${PORT}'\nmax_connections: ${N}\nstate_file: $${IP}/$x\n"
        "log_level: ${LEVEL:-debug}\nhealth_listen: ${H:-}\n"
        "class_rules: [{class: '${EMPTY:-batch}', model: '${M}'}]"
    )
    config = decode(ENGINE + text, {"IP": "10.0.0.1", "PORT": "80", "N": "7", "EMPTY": "", "M": "${IP}"})
    assert str(config.listen) == "10.0.0.1:80"
    assert config.max_connections == 7
    assert config.state_file == "${IP}/$x"
    assert config.log_level == "debug"
    assert config.health_listen is None
    assert config.class_rules[0].cls == "batch"
    assert config.class_rules[0].model == "${IP}", "what a variable holds is not expanded again"


@pytest.mark.parametrize("text", ["${GONE}", "${", "${1A}", "${A"])
def test_bad_variables(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(ENGINE + f"state_file: '{text}'", {})
    assert caught.value.path == "state_file"


def test_a_class_keeps_the_defaults_of_its_place() -> None:
    classes = decode(ENGINE + "classes: {batch: {share: 0.1}, premium: {ttft_s: 2}}", {}).classes
    assert [(name, one.ttft_s, one.share) for name, one in classes.items()] == [
        ("premium", 2, 0.4), ("standard", 3, 0.05), ("batch", 30, 0.1),
    ]  # fmt: skip


def test_classes_of_other_names_are_all_there_are_and_the_first_is_the_highest() -> None:
    config = decode(ENGINE + "classes: {zinc: {share: 0.5}, premium: {}, ash: {max_wait_s: 9}}", {})
    assert list(config.classes) == ["zinc", "premium", "ash"]
    assert [one.share for one in config.classes.values()] == [0.5, 0.4, 0.05], "a known name has its own"
    assert [one.wait_s for one in config.classes.values()] == [3, 1, 9]


@pytest.mark.parametrize(
    ("names", "usual"),
    [([], "standard"), (["gold", "standard", "lead"], "standard"), (["gold", "lead"], "lead")],
)
def test_who_has_no_class_of_its_own_is_in_the_middle_or_last(names: list[str], usual: str) -> None:
    classes = ", ".join(f"{name}: {{}}" for name in names)
    config = decode(ENGINE + f"classes: {{{classes}}}\ntenants: [{{name: a}}]", {})
    assert [(tenant.name, tenant.cls) for tenant in config.tenants] == [("a", usual), ("anonymous", usual)]


def test_all_of_the_engine_may_be_guaranteed_and_no_more() -> None:
    tenths = ", ".join(f"c{i}: {{share: 0.125}}" for i in range(8))
    assert len(decode(ENGINE + f"classes: {{{tenths}}}", {}).classes) == 8
    with pytest.raises(ConfigError, match=r"the shares sum to 1\.001;"):
        decode(ENGINE + f"classes: {{{tenths.replace('0.125', '0.126', 1)}}}", {})


def test_aliases_are_bounded() -> None:
    hashes = ", ".join([HASH] * 1000)
    tenants = ", ".join(["*one"] * 600)
    with pytest.raises(ConfigError, match="too much"):
        decode(ENGINE + f"tenants: [&one {{name: a, key_sha256: [{hashes}]}}, {tenants}]", {})


def test_errors_do_not_repeat_what_may_be_secret() -> None:
    for text in ("tenants: [{name: a, key_sha256: [sk-secret]}]", "redis: {url: 'sk-secret'}"):
        with pytest.raises(ConfigError) as caught:
            decode(ENGINE + text, {})
        assert "sk-secret" not in str(caught.value)


def test_redacted_hides_hashes_and_passwords() -> None:
    text = (
        f"tenants: [{{name: a, key_sha256: [{HASH}]}}]\n"
        f"class_rules: [{{class: batch, header: {{X-Token: sk-secret}}, key_sha256: [{'cd' * 32}]}}]\n"
    )
    for url in ("redis://me:sk-secret@h:1/0", "redis://h:1/0?password=sk-secret", "unix://:sk-secret@/run/r"):
        shown = redacted(decode(ENGINE + text + f"redis: {{url: '{url}'}}", {}))
        assert not any(secret in str(shown) for secret in ("sk-secret", HASH, "cd" * 32))
        assert shown["tenants"][0]["class"] == "standard"  # type: ignore[index]
        assert shown["listen"] == "0.0.0.0:8080"
    assert redacted(decode(ENGINE + "redis: {url: 'redis://h:1/0'}", {}))["redis"]["url"] == "redis://h:1/0"  # type: ignore[index]


def test_needs_restart() -> None:
    old = decode(ENGINE, {})
    assert needs_restart(old, decode(ENGINE + "drain_s: 5", {})) is None
    assert needs_restart(old, decode(ENGINE + "listen: h:1", {})) == "listen"
    assert needs_restart(old, decode(ENGINE + "health_listen: h:1", {})) == "health_listen"
    assert needs_restart(old, decode(ENGINE + "classes: {batch: {share: 0.2}}", {})) is None
    others = decode(ENGINE + "classes: {gold: {}}", {})
    assert needs_restart(old, others) == "classes (their names or their order)"


def test_members_that_begin_to_meet_need_a_restart() -> None:
    listed = "mesh: {pod: p, peers: ['h:2'], secret_file: s}"
    met = "redis: {url: 'redis://h'}\n" + listed
    before, after = decode(ENGINE + listed, {}), decode(ENGINE + met, {})
    found = "redis (members meet there, or they do not)"
    assert needs_restart(before, after) == needs_restart(after, before) == found
    assert needs_restart(after, decode(ENGINE + met.replace("//h", "//i"), {})) is None


def test_what_is_not_built_is_named() -> None:
    text = "limits: [{name: a, limit: 1}]\nretry: {mode: off}\nredis: {url: 'redis://h'}\n"
    assert decode(ENGINE + text, {}).unbuilt() == ["limits", "redis"]
    text += "mesh: {pod: p, spill: overload, advertise: 'h:1', listen: 'h:2', secret_file: s}"
    assert decode(ENGINE + text, {}).unbuilt() == ["limits"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("telemetry: {slow_ms: 1}", "telemetry.slow_ms"),
    ],
)
def test_a_key_without_effect_is_named(text: str, named: str) -> None:
    assert decode(text if text.startswith("engine") else ENGINE + text, {}).unbuilt() == [named]


def test_what_has_an_effect_is_not_named() -> None:
    text = "classes: {premium: {share: 0.3}}\ntenants: [{name: a, weight: 2}]\nlimits: []\n"
    text += "redis: {url: 'redis://h'}\nmesh: {pod: p}"
    assert decode(ENGINE + text, {}).unbuilt() == []


def test_schema_describes_every_key() -> None:
    definitions = schema()["$defs"]
    assert isinstance(definitions, dict)
    assert definitions["Address"]["type"] == "string"
    assert definitions["Config"]["properties"]["listen"]["default"] == "0.0.0.0:8080"
    for name, definition in definitions.items():
        assert "description" in definition, name
        for key, value in definition.get("properties", {}).items():
            assert "description" in value or "$ref" in str(value), f"{name}.{key}"


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "sidecar.yaml"
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(path, {})
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError):
        load(path, {})
    path.write_text(ENGINE)
    assert load(path, {}).engine.address.port == 8000


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000])
def test_what_is_nested_without_end_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"line 1, column .*: too deeply nested"):
        decode(text, {})
