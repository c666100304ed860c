"""Search for bytes that break a property of the readers: `python -m tests.fuzz requests --seconds 600`.

What is learned of the code's branches stays in build/fuzz for the next time. What breaks a property
is made as short as it can be and put among the seeds, where every test run tries it again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import IO, Final

from tests.fuzz.corpus import FOUND, SEEDS, TOKENS
from tests.fuzz.minimise import minimise
from tests.fuzz.properties import PROPERTIES

ROOT: Final = Path(__file__).parents[2]


def search(
    target: str, work: Path, words: list[str], output: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """The search, begun from the seeds; `work` is where libFuzzer writes, `words` are meant for it."""
    corpus = work / target
    corpus.mkdir(parents=True, exist_ok=True)
    dictionary = work / f"{target}.dict"
    quoted = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS if token)
    dictionary.write_text("".join(f'"{token}"\n' for token in quoted))
    command = [
        sys.executable, "-m", "tests.fuzz.target", target, f"-dict={dictionary}",
        f"-artifact_prefix={work}/{target}-", "-max_len=4096", "-len_control=20", "-timeout=20",
        "-rss_limit_mb=2048", "-print_final_stats=1", *words, str(corpus), str(SEEDS / target),
    ]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)


def breaks(target: str, data: bytes) -> bool:
    try:
        PROPERTIES[target](data)
    except Exception:
        return True
    return False


def keep(target: str, found: Path, seeds: Path = SEEDS) -> Path:
    """Make a seed of what libFuzzer found; the shortest that still breaks the property, if it does."""
    data = found.read_bytes()
    if breaks(target, data):
        data = minimise(data, lambda shorter: breaks(target, shorter))
    seed = seeds / target / f"{FOUND}{hashlib.sha1(data).hexdigest()[:8]}"
    seed.write_bytes(data)
    return seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the HTTP/1.1 readers.")
    parser.add_argument("target", choices=PROPERTIES)
    parser.add_argument("--seconds", type=int, default=600, help="how long to search (default 600)")
    options = parser.parse_args()
    work = ROOT / "build/fuzz"
    before = set(work.glob(f"{options.target}-*"))
    process = search(options.target, work, [f"-max_total_time={options.seconds}"])
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.terminate()
        code = process.wait()
    for found in sorted(set(work.glob(f"{options.target}-*")) - before):
        seed = keep(options.target, found)
        print(f"{seed.relative_to(ROOT)}: {seed.read_bytes()!r}")
    return code


if __name__ == "__main__":
    sys.exit(main())
