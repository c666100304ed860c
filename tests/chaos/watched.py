"""A sidecar that tells what it holds: on SIGUSR1 it writes how many objects of which types are alive.

Ours, and those of the event loop: connections, exchanges, timers, tasks. What is as old as the process
(`gc.freeze`) does not count.
"""

import gc
import signal
import sys
from collections import Counter
from typing import Final

import msgspec

from sidecar.__main__ import main

PREFIX: Final = "holds "
_OURS: Final = ("sidecar", "uvloop", "asyncio", "_asyncio", "httptools", "socket", "_socket")


def held() -> dict[str, int]:
    """Live objects by type, without what a collection would have ended anyway."""
    gc.collect()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        if kind.__module__.partition(".")[0] in _OURS:
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return found


def _tell(*_: object) -> None:
    print(PREFIX + msgspec.json.encode(held()).decode(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, _tell)
    sys.exit(main())
