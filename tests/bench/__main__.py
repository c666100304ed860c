"""`make bench`: what the sidecar costs beside httptools, Envoy, nginx and HAProxy, in one run."""

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import uvloop

from tests.bench import costs, machine, waits
from tests.bench.peers import Engine, collector
from tests.bench.proxies import BASELINE, COMMANDS, ENVOY, SIDECAR, Place, installed
from tests.bench.report import SUBJECT, Figure, machine_table, table
from tests.bench.rounds import Bench

ITEMS: Final[dict[str, Callable[[Bench], Awaitable[list[Figure]]]]] = {
    "python": costs.python,
    "requests": costs.requests,
    "chunks": costs.chunks,
    "latency": waits.latency,
    "memory": costs.memory,
    "bodies": costs.bodies,
    "path": costs.path,
    "prompts": waits.prompts,
    "ceiling": costs.ceiling,
}
# Where nginx and HAProxy say something of use: elsewhere they would only cost time.
FOR_ALL: Final = {"requests", "chunks"}
USUAL: Final = (SIDECAR, BASELINE, ENVOY)
ROUNDS: Final = 5
QUICK: Final = 0.1


def names(known: list[str]) -> Callable[[str], list[str]]:
    """Reads a list with commas in it."""

    def read(text: str) -> list[str]:
        asked = text.split(",")
        if unknown := set(asked) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(known)}")
        return [name for name in known if name in asked]

    return read


def arguments() -> argparse.Namespace:
    items = "\n".join(f"  {name:10}{(item.__doc__ or '').splitlines()[0]}" for name, item in ITEMS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"{__doc__}\n\nitems:\n{items}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", type=names([*ITEMS]), default=[*ITEMS], help="items, with commas between")
    known = ", ".join(COMMANDS)
    parser.add_argument("--proxies", type=names([*COMMANDS]), help=f"of {known} (as an item needs)")
    parser.add_argument("--rounds", type=int, help=f"how often all is measured ({ROUNDS}; quick: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value of every round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables, for BENCHMARKS.md")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the time: shows that it runs, and no more"
    )
    asked = parser.parse_args()
    asked.rounds = asked.rounds or (1 if asked.quick else ROUNDS)
    return asked


async def run(asked: argparse.Namespace, folder: Path) -> dict[str, list[Figure]]:
    """Measure; says each table as soon as it is there."""
    engine = Engine()
    place = Place(await engine.listen(), await collector(), folder)
    present = installed()
    if missing := [name for name in asked.proxies or COMMANDS if name not in present]:
        print(f"not installed, left out: {', '.join(missing)}", file=sys.stderr)
    steps = asyncio.ensure_future(engine.step())
    found = {}
    for name in asked.only:
        begun = time.perf_counter()
        proxies = asked.proxies or (COMMANDS if name in FOR_ALL else USUAL)
        compared = [proxy for proxy in proxies if proxy in present]
        bench = Bench(engine, place, compared, asked.rounds, QUICK if asked.quick else 1)
        found[name] = await ITEMS[name](bench)
        print(f"\n{section(name, found[name])}", flush=True)
        print(f"{name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    steps.cancel()
    return found


def section(name: str, figures: list[Figure]) -> str:
    about = " ".join((ITEMS[name].__doc__ or "").split())
    return f"### {name}\n\n{about}\n\n{table(figures, BASELINE)}"


def main() -> int:
    asked = arguments()
    machine.claim()
    # A pause for garbage of ours would be the proxy's latency. What there is goes between measurements.
    gc.disable()
    about = machine.describe()
    about["run"] = time.strftime("%Y-%m-%d") + f", {asked.rounds} rounds" + ", quick" * asked.quick
    print(machine_table(about), flush=True)
    others = machine.others_since()
    with tempfile.TemporaryDirectory(prefix="headgate-bench-") as folder:
        found = uvloop.run(run(asked, Path(folder)))
    about["others"] = f"{others():.0f} % of all cores' time went to other processes meanwhile"
    if asked.json:
        items = {name: [figure.as_json() for figure in figures] for name, figures in found.items()}
        asked.json.write_text(json.dumps({"machine": about, "items": items}, indent=1) + "\n")
    if asked.markdown:
        sections = [section(name, figures) for name, figures in found.items()]
        asked.markdown.write_text("\n\n".join([machine_table(about), *sections]) + "\n")
    missed = [
        f"{name}: {figure.what}"
        for name, figures in found.items()
        for figure in figures
        if figure.is_met is False
    ]
    print(f"\n{about['others']}")
    print(f"{SUBJECT}: " + (f"budgets missed: {'; '.join(missed)}" if missed else "no budget was missed"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
