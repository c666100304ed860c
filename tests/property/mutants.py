"""Ways to break the kernel, the gate and the budget, each of which a test must notice.

A mutant replaces one piece of text, which must occur exactly once: whoever rewrites the code rewrites
its mutants. Each stands for one rule that the code's file head or a comment in it states.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
_TIMEOUT_S: Final = 120.0
# What the suites below need; everything else stays out, so that a copy is made in a moment.
_COPIED: Final = (
    "sidecar",
    "tests/__init__.py",
    "tests/conftest.py",
    "tests/property",
    "tests/unit/sidecar/flow",
)

PIPELINE: Final = "sidecar/pipeline.py"
GATE: Final = "sidecar/flow/gate.py"
BUDGET: Final = "sidecar/flow/budget.py"
SUITES: Final = {
    PIPELINE: ("tests/property/test_pipeline.py",),
    GATE: ("tests/unit/sidecar/flow/test_gate.py", "tests/property/test_gate.py"),
    BUDGET: ("tests/unit/sidecar/flow/test_budget.py",),
}


@dataclass(frozen=True)
class Mutant:
    """`old` becomes `new` in `file`."""

    name: str
    file: str
    old: str
    new: str


def apply(mutant: Mutant, source: str) -> str:
    """The broken source; raises ValueError when the mutant does not fit the code."""
    found = source.count(mutant.old)
    if found != 1:
        raise ValueError(f"{mutant.name}: its text occurs {found} times in {mutant.file}")
    broken = source.replace(mutant.old, mutant.new)
    compile(broken, mutant.file, "exec")
    return broken


def run(folder: Path, file: str, mutant: Mutant | None) -> subprocess.CompletedProcess[str]:
    """The suite of `file` in a copy of the project in `folder`, with `mutant` applied."""
    for path in _COPIED:
        source, target = ROOT / path, folder / path
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if mutant is not None:
        target = folder / file
        target.write_text(apply(mutant, target.read_text()))
    plugins = ("no:cacheprovider", "pytest_timeout", "hypothesispytest")
    options = ["-x", "-q", "--hypothesis-profile=mutants", *(f"-p{plugin}" for plugin in plugins)]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *SUITES[file]],
        cwd=folder,
        # Loading every plugin that is installed takes longer than most of these runs.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def _pipeline(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, PIPELINE, old, new)


def _gate(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, GATE, old, new)


def _budget(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, BUDGET, old, new)


MUTANTS: Final = (
    # Rule 1: left once for each time it was entered, in reverse order.
    _pipeline(
        "an entry counts after the step",
        "                x.entered = at + 1\n                verdict = enter[at](x)\n",
        "                verdict = enter[at](x)\n                x.entered = at + 1\n",
    ),
    _pipeline("the first stage is never left", "self._rewind(x, 0)", "self._rewind(x, 1)"),
    _pipeline("retry does not rewind", "        self._rewind(x, self._retry_at if at is None else at)\n", ""),
    _pipeline(
        "retry rewinds to the last stage only",
        "self._retry_at if at is None else at)",
        "self._retry_at)",
    ),
    _pipeline("retry keeps the attempt", "        x.attempt += 1\n", ""),
    _pipeline("what is not forwarded can be retried", "        assert x.state == FORWARDED, x.state\n", ""),
    _pipeline("what is not parked can be resumed", "        assert x.state == WAITING, x.state\n", ""),
    # Rule 2: nothing runs inside itself.
    _pipeline("a turn begins inside a turn", "        if ready.busy:\n            return\n", ""),
    _pipeline(
        "the ready list is not used",
        "        self._ready.waiting.append(x)\n        self._drain()\n",
        "        self._advance(x)\n",
    ),
    _pipeline(
        "leaving stages is no turn",
        "        was_busy, ready.busy = ready.busy, True\n        while",
        "        was_busy = ready.busy\n        while",
    ),
    _pipeline(
        "answering is no turn",
        "was_busy, ready.busy = ready.busy, True  #",
        "was_busy = ready.busy  #",
    ),
    _pipeline(
        "completing wakes nobody",
        "        self._rewind(x, 0)\n        self._drain()\n",
        "        self._rewind(x, 0)\n",
    ),
    _pipeline("the waker's pipeline runs the woken", "x.pipeline._advance(x)", "self._advance(x)"),
    _pipeline(
        "what was settled still runs", "while x.state == RUNNING:", "while x.state in (RUNNING, DONE):"
    ),
    _pipeline(
        "a stage that settles its exchange is overruled",
        "                if x.state != RUNNING:\n                    return\n",
        "",
    ),
    # Rule 3: a bug costs one request and no capacity.
    _pipeline(
        "a crash is silent",
        'log.exception("stage %d failed", x.entered - 1)\n            self.refuse(x, Reply(INTERNAL))\n',
        'log.exception("stage %d failed", x.entered - 1)\n',
    ),
    _pipeline(
        "a crash while forwarding escapes",
        '            log.exception("stage %d failed"',
        '            if x.state == FORWARDED: raise\n            log.exception("stage %d failed"',
    ),
    _pipeline(
        "a crash on leaving escapes",
        'except Exception:\n                log.exception("leaving',
        'except KeyError:\n                log.exception("leaving',
    ),
    _pipeline(
        "a crash while answering escapes",
        'except Exception:\n            log.exception("answering',
        'except KeyError:\n            log.exception("answering',
    ),
    _pipeline(
        "a crash on the response escapes",
        'except Exception:\n            log.exception("a stage',
        'except KeyError:\n            log.exception("a stage',
    ),
    _pipeline(
        "a crash on the response settles nothing",
        "            self.refuse(x, Reply(INTERNAL))\n            return False\n",
        "            return False\n",
    ),
    # Rule 4: nothing is dispatched while an answer about it is pending.
    _pipeline(
        "pending answers are not awaited",
        "                if at == self._retry_at and x.pending:\n                    x.state = HELD\n"
        "                    return\n",
        "",
    ),
    _pipeline("a held exchange is never let go", "if x.state == HELD or (x.state", "if (x.state"),
    _pipeline(
        "an answer that says no is taken for yes",
        "        if verdict is not None:\n            x.refusal = verdict\n        if x.state == HELD",
        "        if x.state == HELD",
    ),
    _pipeline(
        "an answer that says no waits for the queue",
        "(x.state == WAITING and verdict is not None)",
        "(x.state == WAITING and False)",
    ),
    _pipeline(
        "an answer to a settled exchange revives it",
        "        x.pending -= 1\n        if x.state == DONE:\n            return\n",
        "        x.pending -= 1\n        if x.state == DONE:\n            x.state = HELD\n",
    ),
    _pipeline(
        "a no that came while a stage parked is slept over",
        "                if x.refusal is None:\n                    x.state = WAITING\n",
        "                x.state = WAITING\n",
    ),
    # Verdicts and answers.
    _pipeline(
        "the verdict of a resumed exchange is ignored",
        "x.refusal = verdict\n        self.start",
        "self.start",
    ),
    _pipeline(
        "an answer does not settle",
        "        ready.busy = was_busy\n        self.complete(x)\n",
        "        ready.busy = was_busy\n",
    ),
    _pipeline(
        "a settled exchange is answered again",
        "        elif x.state != DONE:\n            self._reply",
        "        else:\n            self._reply",
    ),
    _pipeline(
        "what is refused before its turn leaves no trace",
        "        if x.state == RUNNING and not x.entered:\n            x.refusal = reply",
        "        if False:\n            x.refusal = reply",
    ),
    _pipeline("the reason is not kept", "        x.reason = reply.refusal.reason\n", ""),
    _pipeline(
        "what is refused from the start leaves no trace",
        "if x.refusal is not None and at:",
        "if x.refusal is not None:",
    ),
    # The gate.
    _gate(
        "one more than the limit",
        "if len(self._inside) < self.limit and",
        "if len(self._inside) <= self.limit and",
    ),
    _gate(
        "one more than the queue holds",
        "if len(self._waiting) < self.max_queue",
        "if len(self._waiting) <= self.max_queue",
    ),
    _gate("newcomers overtake", "< self.limit and not self._waiting:", "< self.limit:"),
    _gate("the last who came enters first", "popitem(last=False)", "popitem(last=True)"),
    _gate(
        "who gives up stays in the queue",
        "            self._waiting.pop(member, None)\n",
        "            pass\n",
    ),
    _gate(
        "who was let in holds no slot",
        "        member, _ = self._waiting.popitem(last=False)\n        self._inside.add(member)\n",
        "        member, _ = self._waiting.popitem(last=False)\n",
    ),
    _gate("who leaves keeps the slot", "            self._inside.remove(member)\n", ""),
    _gate(
        "next_in forgets the limit",
        "if not self._waiting or len(self._inside) >= self.limit:",
        "if not self._waiting:",
    ),
    _gate(
        "next_in leaves one slot idle",
        "len(self._inside) >= self.limit:",
        "len(self._inside) + 1 >= self.limit:",
    ),
    _gate(
        "the wait leaves out the newcomer",
        "(len(self._waiting) + 1) * interval",
        "len(self._waiting) * interval",
    ),
    _gate("gaps between visits count as work", "            self._freed = None  #", "            pass  #"),
    _gate("only the last gap counts", "old + (gap - old) * _SMOOTHING", "gap"),
    _gate(
        "giving up is measured as work",
        "            self._waiting.pop(member, None)\n",
        "            self._waiting.pop(member, None)\n            self._measure(now)\n",
    ),
    # The budget.
    _budget("the limit itself is too much", "> self.limit", ">= self.limit"),
    _budget("one amount alone is measured", "if self.held + amount >", "if amount >"),
    _budget(
        "who gets nothing holds it",
        "            return False\n",
        "            self.held += amount\n            return False\n",
    ),
    _budget("what was taken is not counted", "        self.held += amount\n", ""),
    _budget("nothing is given back", "        self.held -= amount\n", "        pass\n"),
)
