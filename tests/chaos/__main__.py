"""`python -m tests.chaos --requests N --seed S`: the test of leaks by hand, for as long as you like."""

import argparse
import os
import sys
from pathlib import Path

import pytest

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", default="1")
    arguments = parser.parse_args()
    os.environ["HEADGATE_CHAOS_REQUESTS"] = str(arguments.requests)
    os.environ["HEADGATE_CHAOS_SEED"] = arguments.seed
    sys.exit(pytest.main([str(Path(__file__).parent), "-q", "-s", "--timeout=0", "-p", "no:cacheprovider"]))
