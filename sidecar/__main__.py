"""`python -m sidecar --config FILE`: reads the configuration and runs one sidecar."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
from pathlib import Path

import uvloop

from sidecar.app import VERSION, App
from sidecar.errors import ConfigError

EXIT_USAGE = 64  # EX_USAGE of sysexits.h: do not restart me, mend the configuration


def _open_files() -> int | None:
    """Raise the limit of open files as far as we may; what it is then. None: there is none."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return None if hard == resource.RLIM_INFINITY else hard


def main() -> int:
    parser = argparse.ArgumentParser(prog="headgate sidecar", description="The gate beside one model server.")
    parser.add_argument(
        "--config",
        type=Path,
        default=os.environ.get("HEADGATE_CONFIG"),
        help="YAML file (default: $HEADGATE_CONFIG)",
    )
    parser.add_argument("--version", action="version", version=f"headgate {VERSION}")
    try:
        arguments = parser.parse_args()
    except SystemExit as end:
        return EXIT_USAGE if end.code else 0
    if arguments.config is None:
        parser.print_usage(sys.stderr)
        print("headgate sidecar: give --config FILE or set HEADGATE_CONFIG", file=sys.stderr)
        return EXIT_USAGE
    logging.basicConfig(
        stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.WARNING
    )
    try:
        app = App(arguments.config, os.environ, _open_files())
    except ConfigError as error:
        print(f"headgate sidecar: {arguments.config}: {error}", file=sys.stderr)
        return EXIT_USAGE
    gc.freeze()  # what start-up made lives as long as we do
    try:
        return uvloop.run(app.run())
    except BaseExceptionGroup as group:
        refused, bugs = group.split(OSError)  # an address that cannot be had
        if bugs is not None:
            raise
        for cause in refused.exceptions if refused is not None else ():
            print(f"headgate sidecar: {cause}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
