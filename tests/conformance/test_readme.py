"""The README says of refusals, classes and keys what the code says, and its examples are accepted."""

import re
from functools import reduce
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from model_pod import faults
from sidecar import errors
from sidecar.config import decode
from sidecar.settings import CLASSES

README = (Path(__file__).parents[2] / "README.md").read_text()
EXAMPLES = re.findall(r"```yaml\n(.+?)```", README, re.DOTALL)
# Accepted words whose part is not built, and the one that nobody is told.
NOT_SHOWN = {"rate_limited", "exceeds_quota", "client_gone"}


def table(name: str) -> list[list[str]]:
    """The cells of each row below the heads of the tables of this name, without their backticks."""
    texts = re.findall(rf"<!-- {name}: (.+?)<!-- end of {name} -->", README, re.DOTALL)
    rows = [row for text in texts for row in re.findall(r"^\| (.+) \|$", text, re.MULTILINE)[1:]]
    return [[cell.removeprefix("`").removesuffix("`") for cell in row.split(" | ")] for row in rows]


def test_the_table_of_refusals_is_that_of_the_code() -> None:
    rows = [row for row in vars(errors).values() if isinstance(row, errors.Refusal)]
    told = [[r.reason, str(r.status), r.message] for r in rows if r.reason not in NOT_SHOWN]
    assert sorted(table("refusals")) == sorted(told)


def test_the_table_of_classes_is_that_of_the_code() -> None:
    promised = [[name, f"{c.ttft_s:g}", f"{c.itl_ms:g}", f"{c.share:g}"] for name, c in CLASSES.items()]
    assert table("classes") == promised


@pytest.mark.parametrize(("key", "shown"), [row[:2] for row in table("settings")])
def test_a_default_is_that_of_the_code(key: str, shown: str) -> None:
    mesh = "redis: {url: 'redis://h'}\nmesh: {pod: p}"
    config = decode(f"engine: {{address: '127.0.0.1:8000'}}\n{mesh}", {})

    def step(at: Any, name: str) -> Any:
        return at["batch"] if name == "*" else getattr(at, name)

    default = reduce(step, key.split("."), config)
    if default is None:  # then the table says in words what happens
        assert not re.fullmatch(r"[0-9.]+|on|off|true|false", shown)
    else:
        assert shown == (f"{default:g}" if isinstance(default, float) else str(default).lower())


def test_the_table_of_faults_is_that_of_the_code() -> None:
    def member(field: msgspec.inspect.Field) -> str:
        if field.required:
            return field.encode_name
        default = field.default
        text = f"{default:g}" if isinstance(default, float) else msgspec.json.encode(default).decode()
        return f"{field.encode_name}={text}"

    kinds = [msgspec.inspect.type_info(kind) for kind in (*get_args(faults.Steady), faults.Flap)]
    known = [[kind.tag, " ".join(map(member, kind.fields)) or "-"] for kind in kinds]
    assert [[kind, members.replace("`", "")] for kind, members, _ in table("faults")] == known


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_accepted(example: str) -> None:
    assert decode(example.encode(), {}).unbuilt() == []


def test_there_are_tables_and_examples() -> None:
    assert len(table("settings")) > 30
    assert len(EXAMPLES) == 3
