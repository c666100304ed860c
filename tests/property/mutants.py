"""Ways to break the kernel, admission and the budget, each of which a test must notice.

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
ADMISSION: Final = "sidecar/flow/admission.py"
FAIR: Final = "sidecar/flow/fair.py"
INVITATIONS: Final = "sidecar/flow/invitations.py"
BUDGET: Final = "sidecar/flow/budget.py"
SUITES: Final = {
    PIPELINE: ("tests/property/test_pipeline.py",),
    ADMISSION: ("tests/unit/sidecar/flow/test_admission.py", "tests/property/test_admission.py"),
    FAIR: ("tests/unit/sidecar/flow/test_fair.py", "tests/property/test_admission.py"),
    INVITATIONS: ("tests/unit/sidecar/flow/test_invitations.py", "tests/property/test_admission.py"),
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


def _admission(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, ADMISSION, old, new)


def _fair(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, FAIR, old, new)


def _invitations(name: str, old: str, new: str) -> Mutant:
    return Mutant(name, INVITATIONS, old, new)


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
    # What fails.
    _pipeline(
        "a failure that found another place is answered as well",
        "        if not self.recovers(x, reply.refusal.reason):\n            self.refuse(x, reply)\n",
        "        self.recovers(x, reply.refusal.reason)\n        self.refuse(x, reply)\n",
    ),
    _pipeline(
        "a failure without another place is not answered",
        "        if not self.recovers(x, reply.refusal.reason):\n            self.refuse(x, reply)\n",
        "        self.recovers(x, reply.refusal.reason)\n",
    ),
    _pipeline(
        "what is not under way is sent elsewhere",
        "if x.state != FORWARDED or self._recover is None:",
        "if self._recover is None:",
    ),
    _pipeline(
        "a crash while finding another place escapes",
        'except Exception:\n            log.exception("finding',
        'except KeyError:\n            log.exception("finding',
    ),
    _pipeline("what failed is not kept", "        x.failure, x.failed_with = failure, status\n", ""),
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
    # Admission: bounds.
    _admission(
        "one more than there are seats",
        "if running >= self.seats * ceiling:",
        "if running > self.seats * ceiling:",
    ),
    _admission("a request needs no room", "return self.room + min(", "return self.room + 0 * min("),
    _admission(
        "lower classes fill the engine",
        "ceiling = self.ceilings[rank]",
        "ceiling = self.ceilings[0]",
    ),
    _admission("prompts ahead do not matter", "        if backlog:\n", "        if False:\n"),
    _admission(
        "the queue holds one more",
        "if self.queued >= self.max_queue or self.queued_bytes + ticket.size",
        "if self.queued > self.max_queue or self.queued_bytes + ticket.size",
    ),
    # Admission: what is held.
    _admission("who leaves keeps its room", "self.room -= ticket.room", "pass"),
    _admission("what a token shows is not set aside", "        self.room = room\n", ""),
    _admission(
        "a prompt is open for ever",
        "        ticket.first = now\n        self.backlog -= ticket.fresh\n",
        "        ticket.first = now\n",
    ),
    _admission("bytes that waited are kept", "        self.queued_bytes -= ticket.size\n", ""),
    _admission(
        "who is too late keeps its place",
        "                    ticket.state = GONE\n                    self.anomaly",
        "                    self._queue(ticket, now)\n                    self.anomaly",
    ),
    # Admission: orders.
    _admission("newcomers overtake", "if not self.queued and self.fits(", "if self.fits("),
    _admission(
        "the lowest class goes first",
        "        for cls, queue in enumerate(queues):\n            for ticket in aged",
        "        for cls, queue in reversed([*enumerate(queues)]):\n            for ticket in aged",
    ),
    _admission(
        "no class has a share",
        "self._credit[other] += self.terms[other].share * work",
        "self._credit[other] += 0.0",
    ),
    _admission("who was invited waits for higher classes", " or head.promised:", ":"),
    _admission("aging is at once", "int((now - oldest.queued) / self.aging_s)", "2"),
    _admission(
        "a full queue drops the most important",
        "range(len(self.queues) - 1, ticket.cls - 1, -1)",
        "range(len(self.queues))",
    ),
    _admission("equals are dropped for each other", "spared(ticket.tier if", "spared(ticket.tier - 1 if"),
    _admission(
        "many are dropped in vain",
        "        return False\n\n    def _too_late",
        "        self.dropped += found\n        return False\n\n    def _too_late",
    ),
    _admission(
        "who was invited is refused",
        "if ticket.tier != INVITED and (self._too_late",
        "if (self._too_late",
    ),
    _admission("who is sent back loses its turn", "        ticket.tier = INVITED\n", ""),
    _admission("who gave way gives way again", "        ticket.stays = True\n", ""),
    # Fair queues.
    _fair(
        "repeats go first",
        "for tier, active in enumerate(self._active):",
        "for tier, active in reversed([*enumerate(self._active)]):",
    ),
    _fair("repeats are dropped last", "range(_TIERS - 1, tier, -1)", "range(tier + 1, _TIERS)"),
    _fair("who is due last goes first", "lines[tier][-1][2]", "lines[tier][0][2]"),
    _fair("the most served goes first", "return active[0][2].lines", "return active[-1][2].lines"),
    _fair(
        "being served costs nothing",
        "self._move(account, ticket.work / ticket.weight)",
        "self._move(account, 0.0)",
    ),
    _fair(
        "weights count for nothing",
        "self._move(account, ticket.work / ticket.weight)",
        "self._move(account, ticket.work)",
    ),
    _fair("what it really took is forgotten", "(work - ticket.work) / ticket.weight", "0.0"),
    _fair("who was away has saved it up", "self._virtual = counter", "pass"),
    _fair("who leaves is still listed", "        del self._arrivals[ticket]\n", ""),
    _fair("work that left still waits", "        self.work -= ticket.work\n", ""),
    # Invitations.
    _invitations(
        "all are invited for the same time",
        "self._free[cls] = at + work / (rate * self.part)",
        "self._free[cls] = at",
    ),
    _invitations("all of the rate is promised", "work / (rate * self.part)", "work / rate"),
    _invitations("nobody comes too late", "        if at > latest:\n            return None\n", ""),
    _invitations("there is room at once", "max(self._free[cls], earliest, ", "max(self._free[cls], "),
    _invitations("an invitation counts twice", "= self._refused.pop(who, None)", "= self._refused.get(who)"),
    _invitations("any time is the right one", "told.opens - _SOONEST_S <= now <=", "told.opens and now <="),
    _invitations("refusals are remembered for ever", "if len(refused) > _MOST:", "if False:"),
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
