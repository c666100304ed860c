"""The rules of ARCHITECTURE.md, executed. A rule that is not here is an opinion.

1. A unit imports of ours what `MAY_IMPORT` says; annotations (`if TYPE_CHECKING`) are free.
2. What belongs to one place (I/O, time, chance, heavy libraries) is imported in that place alone.
3. No relative imports, no import cycles, and inside functions only what `DELAYED` lists.
4. Files and functions stay short, and every source file has its test.
5. The repository's top level holds what `FOLDERS` lists.
6. What is compiled defines nothing of msgspec's: too little of the annotations is left in compiled classes.
"""

import ast
import graphlib
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parent.parent
PACKAGES: Final = ("sidecar", "mesh", "model_pod")
MAX_FILE_LINES: Final = 500  # a file has fewer
MAX_FUNCTION_LINES: Final = 60

PURE: Final = {
    "sidecar.http1",
    "sidecar.llm",
    "sidecar.flow",
    "sidecar.balance",
    "sidecar.cache",
    "sidecar.telemetry",
}
KERNEL: Final = {"sidecar.errors", "sidecar.exchange", "sidecar.pipeline"}
WORLD: Final = {"sidecar.settings", "sidecar.values", "sidecar.faults", "sidecar.clock", "sidecar.lifecycle"}

# What a unit may import of this repository beside itself. The longest name that fits counts.
MAY_IMPORT: Final[dict[str, set[str]]] = {
    "sidecar.errors": set(),
    "sidecar.clock": set(),
    "sidecar.lifecycle": set(),
    "sidecar.deny_paths": set(),
    "sidecar.values": set(),
    "sidecar.faults": {"sidecar.errors", "sidecar.values"},
    "sidecar.settings": {"sidecar.errors", "sidecar.deny_paths", "sidecar.faults", "sidecar.values"},
    "sidecar.config": {"sidecar.errors", "sidecar.settings", "sidecar.values"},
    **{package: {"sidecar.errors"} for package in PURE},
    "sidecar.exchange": {"sidecar.errors"},
    "sidecar.pipeline": {"sidecar.errors", "sidecar.exchange"},
    "sidecar.stages": PURE | KERNEL | WORLD,
    # Not `llm`: what a body means is the stages' business. Its shape of a refusal is an exception, because
    # `net` alone writes answers, and so is its first token: until then an answer can still be another one.
    "sidecar.net": (PURE | KERNEL | WORLD) - {"sidecar.llm"} | {"sidecar.llm.errors", "sidecar.llm.tokens"},
    # Neither the process around it nor the reading of files: it is handed settings and a dialer.
    "sidecar.plane": PURE | KERNEL | WORLD | {"sidecar.stages", "sidecar.net"},
    "sidecar.member": PURE | KERNEL | WORLD | {"sidecar.stages", "sidecar.net", "sidecar.plane"},
    "sidecar.learnt": {"sidecar.flow"},
    "sidecar.standing": {"sidecar.plane"},
    "sidecar.admin_routes": {"sidecar"},
    "sidecar.app": {"sidecar"},
    "sidecar.__main__": {"sidecar"},
    "mesh": PURE | (WORLD - {"sidecar.clock", "sidecar.lifecycle"}) | {"sidecar.config", "sidecar.errors"},
    "model_pod": set(),
}

_IO: Final = {"sidecar.net", "sidecar.app", "sidecar.__main__", "mesh", "model_pod"}
_THREADS: Final = {
    "sidecar.net.admin",  # answers while the event loop is stuck
    "sidecar.net.health",  # likewise, on grpcio's own
    "sidecar.net.lines",  # waits for whoever reads the access log
    "mesh",
    "model_pod",
}
_TORCH: Final = {"model_pod.torch_engine", "model_pod.torch_backends", "model_pod.tiny"}
# Modules that only these units may import.
ONLY_IN: Final[dict[str, set[str]]] = {
    "asyncio": _IO,
    "socket": _IO,
    "select": _IO,
    "uvloop": _IO,
    # The data plane belongs to one thread. What others there are has its reason in these files.
    "threading": _THREADS,
    "concurrent": _THREADS,
    "queue": _THREADS,
    "signal": {"sidecar.app", "mesh", "model_pod"},
    "resource": {"sidecar.__main__", "mesh.bench.clients"},
    "subprocess": {"mesh"},
    "time": {"sidecar.clock", "mesh", "model_pod"},
    "random": {"sidecar.clock", "mesh", "model_pod"},
    "httptools": set(),  # tests and benchmarks compare themselves with it
    "yaml": {"sidecar.config", "mesh"},
    "prometheus_client": {"sidecar.telemetry", "model_pod"},
    # Tens of megabytes each: only a process that needs one pays for it.
    "grpc": {"sidecar.net.health", "sidecar.net.probe_grpc", "mesh", "model_pod"},
    "grpc_health": {"sidecar.net.health", "sidecar.net.probe_grpc", "mesh", "model_pod"},
    "redis": {"sidecar.net.redis", "mesh"},
    "aiohttp": {"mesh", "model_pod"},
    "torch": _TORCH,
    "transformers": _TORCH,
    "tokenizers": _TORCH,
    "matplotlib": {"mesh.bench.plot"},  # an extra
}

# Imports inside functions: what only some configurations need.
DELAYED: Final = {
    ("sidecar.app", "sidecar.net.health"),  # grpc
    ("sidecar.app", "sidecar.net.probe_grpc"),  # grpc
    ("sidecar.app", "sidecar.net.redis"),  # redis
    ("sidecar.member", "sidecar.net.redis"),  # redis
    ("model_pod.__main__", "model_pod.torch_engine"),  # torch
    ("mesh.bench.report", "mesh.bench.plot"),  # matplotlib
}

# Source files without a unit test of their own, and the tests that run them instead.
WITHOUT_MIRROR: Final = {
    # Rules over interleavings, so a state machine rather than samples.
    "sidecar.pipeline": "property/test_pipeline.py",
    # What goes on of a request is a rule of HTTP.
    "sidecar.net.requests": "conformance/test_http1_forwarded.py",
    # Two attempts at once need two engines and a caller.
    "sidecar.stages.hedge": "conformance/test_hedge.py",
    # Command lines: their tests start them as processes.
    "mesh.__main__": "integration/test_up.py",
    "mesh.local.__main__": "integration/test_up.py",
    "mesh.bench.__main__": "integration/test_bench_command.py",
    # It needs Redis, which unit tests must do without.
    "sidecar.net.redis": "integration/test_board.py",
    # They need torch, which unit tests must do without.
    "model_pod.tiny": "integration/test_model_pod_torch.py",
    "model_pod.torch_engine": "integration/test_model_pod_torch.py",
    "model_pod.torch_backends": "integration/test_model_pod_torch.py",
}

FOLDERS: Final = {"sidecar", "model_pod", "mesh", "envoy", "charts", "tests"}
# What work on a checkout leaves beside them; all of it is ignored by git.
LEFTOVERS: Final = {"build", "dist"}


def within(name: str, units: set[str]) -> bool:
    """Whether `name` is one of `units` or inside one."""
    return any(name == unit or name.startswith(unit + ".") for unit in units)


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(tree: ast.AST) -> Iterator[str]:
    """What is imported at run time: a.b for both `import a.b` and `from a import b`; relative: .b."""
    if isinstance(tree, ast.If) and "TYPE_CHECKING" in ast.unparse(tree.test):
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        base = "." * tree.level + (tree.module or "")
        yield from (f"{base}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imports(child)


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def forbidden_imports(name: str, tree: ast.AST) -> list[str]:
    """Rules 1 and 2 for the module `name`."""
    unit = max((unit for unit in MAY_IMPORT if within(name, {unit})), key=len)
    found = []
    for target in imports(tree):
        if target.startswith("."):
            found.append(f"{name} imports {target}: relative")
        elif within(target, set(PACKAGES)) and not within(target, MAY_IMPORT[unit] | {unit}):
            found.append(f"{name} may not import {target}")
        found += [
            f"{name} may not import {target}"
            for owned, homes in ONLY_IN.items()
            if within(target, {owned}) and not within(name, homes)
        ]
    return found


def delayed_imports(name: str, tree: ast.AST) -> list[str]:
    """Imports inside functions that `DELAYED` does not list."""
    return [
        f"{name}.{function.name} imports {target} inside the function"
        for function in functions(tree)
        for target in imports(function)
        if not any(name == where and within(target, {what}) for where, what in DELAYED)
    ]


def too_long(name: str, source: str) -> list[str]:
    """Rule 4's sizes."""
    found = []
    lines = len(source.splitlines())
    if lines >= MAX_FILE_LINES:
        found.append(f"{name} has {lines} lines")
    for function in functions(ast.parse(source)):
        lines = (function.end_lineno or 0) - function.lineno + 1
        if lines > MAX_FUNCTION_LINES:
            found.append(f"{name}.{function.name} has {lines} lines")
    return found


def cycle(trees: dict[str, ast.AST]) -> list[str]:
    """A cycle of run-time imports between these modules; empty when there is none."""
    graph: dict[str, set[str]] = {}
    for name, tree in trees.items():
        known = {target if target in trees else target.rpartition(".")[0] for target in imports(tree)}
        graph[name] = (known & trees.keys()) - {name}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


SOURCES: Final = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
TREES: Final[dict[str, ast.AST]] = {module(path): ast.parse(path.read_text()) for path in SOURCES}


def test_there_are_sources() -> None:
    assert {name.partition(".")[0] for name in TREES} == set(PACKAGES)


@pytest.mark.parametrize("name", TREES)
def test_imports_follow_the_dependency_rules(name: str) -> None:
    if name not in PACKAGES:  # these hold a docstring, and are checked by belonging to no unit
        assert forbidden_imports(name, TREES[name]) == []
    assert delayed_imports(name, TREES[name]) == []


def test_packages_themselves_import_nothing() -> None:
    assert [target for name in PACKAGES if name in TREES for target in imports(TREES[name])] == []


def test_imports_make_no_cycle() -> None:
    assert cycle(TREES) == []


def test_every_delayed_import_is_there() -> None:
    """An exception that nobody uses any more is a hole."""
    for where, what in DELAYED:
        assert any(within(target, {what}) for target in imports(TREES[where])), (where, what)


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_files_and_functions_are_short(path: Path) -> None:
    assert too_long(module(path), path.read_text()) == []


def test_test_files_are_short() -> None:
    lengths = {path.name: path.read_text().count("\n") for path in (ROOT / "tests").rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines >= MAX_FILE_LINES} == {}


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_every_source_has_its_test(path: Path) -> None:
    mirror = ROOT / "tests/unit" / path.relative_to(ROOT).with_name(f"test_{path.stem.strip('_')}.py")
    name = module(path)
    if path.name == "__init__.py":
        return
    if name in WITHOUT_MIRROR:
        assert not mirror.exists(), f"{name} has a test now: take it off the list"
    else:
        assert mirror.exists(), f"{name} has no {mirror.relative_to(ROOT)}"


def test_every_exception_is_about_files_that_exist() -> None:
    assert WITHOUT_MIRROR.keys() <= TREES.keys()
    assert [test for test in WITHOUT_MIRROR.values() if not (ROOT / "tests" / test).exists()] == []


def test_the_top_level_is_the_agreed_one() -> None:
    found = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert {name for name in found if not name.endswith(".egg-info")} - LEFTOVERS == FOLDERS


# The checks themselves.


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sidecar.flow.gate", "from sidecar.errors import QUEUE_FULL"),
        ("sidecar.http1.request", "from sidecar.http1.encode import chunk"),
        ("sidecar.net.answers", "from sidecar.llm.errors import error_body"),
        ("sidecar.stages.admit", "from sidecar import clock"),
        ("sidecar.flow.gate", "if TYPE_CHECKING:\n    import asyncio\n    from sidecar.net import timers"),
        ("sidecar.plane", "from sidecar.stages.pick import Pick\nfrom sidecar.net.timers import Timers"),
        ("sidecar.plane", "from sidecar.settings import Config"),
        ("sidecar.net.lines", "import queue\nimport threading"),
        ("sidecar.__main__", "import resource"),
        ("mesh.quota", "import redis.asyncio"),
        ("mesh.quota", "from sidecar.flow.bucket import Bucket"),
        ("sidecar.telemetry.metrics", "import timeit"),
    ],
)
def test_allowed(name: str, source: str) -> None:
    assert forbidden_imports(name, ast.parse(source)) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("sidecar.flow.gate", "from sidecar.exchange import Exchange"),
        ("sidecar.flow.gate", "from sidecar.http1.encode import chunk"),
        ("sidecar.flow.gate", "import sidecar.settings"),
        ("sidecar.flow.gate", "def f():\n    import time"),
        ("sidecar.flow.gate", "if True:\n    from time import monotonic"),
        ("sidecar.flow.gate", "from . import errors"),
        ("sidecar.exchange", "import sidecar.pipeline"),
        ("sidecar.exchange", "from sidecar.balance.endpoint import Endpoint"),
        ("sidecar.stages.pick", "from sidecar.net.timers import Timers"),
        ("sidecar.stages.pick", "from asyncio import Task"),
        ("sidecar.net.downstream", "from sidecar.llm.request import read"),
        ("sidecar.net.downstream", "from sidecar.stages.admit import Admit"),
        ("sidecar.http1.request", "import httptools"),
        ("sidecar.net.probe", "import grpc.aio"),
        ("sidecar.net.downstream", "import threading"),
        ("sidecar.net.downstream", "from concurrent.futures import ThreadPoolExecutor"),
        ("sidecar.plane", "import asyncio"),
        ("sidecar.plane", "import threading"),
        ("sidecar.plane", "from sidecar.app import App"),
        ("sidecar.plane", "from sidecar.admin_routes import routes"),
        ("sidecar.plane", "from sidecar.config import decode"),
        ("sidecar.net.context", "from sidecar.plane import Plane"),
        ("sidecar.app", "import resource"),
        ("sidecar.app", "import threading"),
        ("sidecar.net.watch", "import signal"),
        ("sidecar.errors", "from sidecar.clock import Clock"),
        ("sidecar.app", "from mesh.gateway import render"),
        ("mesh.gateway", "from sidecar.net.timers import Timers"),
        ("model_pod.server", "from sidecar.errors import INTERNAL"),
        ("model_pod.server", "import torch.nn"),
    ],
)
def test_forbidden(name: str, source: str) -> None:
    assert len(forbidden_imports(name, ast.parse(source))) == 1


def test_an_import_inside_a_function_is_seen() -> None:
    tree = ast.parse("import a\ndef f():\n import sidecar.net.health\nclass C:\n def g(self):\n  import b\n")
    assert delayed_imports("sidecar.app", tree) == ["sidecar.app.g imports b inside the function"]
    assert len(delayed_imports("sidecar.__main__", tree)) == 2


def test_a_cycle_is_seen() -> None:
    a = ast.parse("from p.b import x")
    assert set(cycle({"p.a": a, "p.b": ast.parse("from p import a")})) == {"p.a", "p.b"}
    assert cycle({"p.a": a, "p.b": ast.parse("if TYPE_CHECKING:\n    from p import a")}) == []


def test_length_is_seen() -> None:
    short, long = "def f():\n" + "    x\n" * 59, "def f():\n" + "    x\n" * 60
    assert too_long("m", short) == []
    assert too_long("m", long) == ["m.f has 61 lines"]
    assert too_long("m", "x\n" * 500) == ["m has 500 lines"]


def compiled_files() -> list[Path]:
    hook = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    chosen = hook["hooks"]["mypyc"]
    found = {path for pattern in chosen["include"] for path in ROOT.glob(pattern)}
    return sorted(path for path in found if not any(str(path).endswith(name) for name in chosen["exclude"]))


def defines_struct(source: str) -> bool:
    classes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    return any(ast.unparse(base).endswith("Struct") for one in classes for base in one.bases)


def test_what_is_compiled_defines_nothing_for_msgspec() -> None:
    files = compiled_files()
    assert ROOT / "sidecar/pipeline.py" in files
    assert ROOT / "sidecar/flow/news.py" not in files
    assert [str(path.relative_to(ROOT)) for path in files if defines_struct(path.read_text())] == []
    assert defines_struct("class A(msgspec.Struct, frozen=True): ...")


def test_what_is_tested_is_what_was_asked_for() -> None:
    """Compiled where make says so; else from the sources, whatever lies beside them."""
    from sidecar import pipeline

    assert pipeline.__file__.endswith(".py") is not bool(os.environ.get("HEADGATE_COMPILED"))
