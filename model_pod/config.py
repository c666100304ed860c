"""The command line. Every flag is here, and every wrong one is named before anything is loaded.

Exit statuses: 0 done, 1 failed, 64 wrong use (sysexits' EX_USAGE): to start again with the same words cannot
help.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeVar

from model_pod.fake_engine import Lengths
from model_pod.fake_scheduler import Costs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FAKE, TRANSFORMERS = "fake", "transformers"
EXIT_USAGE: Final = 64

T = TypeVar("T")


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line said."""

    engine: str
    model: str | None  # None: --tiny, or the fake engine
    served_model_name: str
    listen: Address
    health_listen: Address | None
    threads: int | None  # of torch; None: torch decides
    seed: int
    cache_dir: Path
    max_running: int
    max_waiting: int
    max_model_len: int | None  # tokens; None: the engine's own
    grace_s: float
    log_level: str
    priority_scheduling: bool
    faults: Address | None  # where faults are set; None: there are none
    costs: Costs
    lengths: Lengths


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Says what is wrong as argparse does, and exits with our status."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


def parse(argv: Sequence[str] | None = None) -> Settings:
    """Read the command line; exits with status 64 and a message when it is wrong."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.engine == TRANSFORMERS and (args.model is None) != args.tiny:
        parser.error("--engine transformers needs one of --model PATH and --tiny")
    if args.engine == FAKE and (args.model is not None or args.tiny):
        parser.error("--model and --tiny belong to --engine transformers")
    if args.model is not None and not (Path(args.model) / "config.json").is_file():
        # Else the library would take it for a name on its hub.
        parser.error(f"argument --model: {args.model} is not a model's folder: no config.json in it")
    if args.engine != FAKE and args.priority_scheduling:
        parser.error("--priority-scheduling belongs to --engine fake")
    if args.engine != FAKE and args.faults is not None:
        parser.error("--faults belongs to --engine fake: no other engine does wrong on demand")
    args.served_model_name = args.served_model_name or args.model or ("tiny" if args.tiny else FAKE)
    args.costs, args.lengths = _pick(Costs, args), _pick(Lengths, args)
    return _pick(Settings, args)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m model_pod",
        description="An OpenAI-compatible model server. Prints `ready http://HOST:PORT` when it serves; "
        "SIGTERM and SIGINT end it cleanly.",
        formatter_class=Help,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--engine", choices=(TRANSFORMERS, FAKE), required=True, help="what generates")
    add("--model", metavar="PATH", help="folder of a transformers model and its tokenizer")
    add("--tiny", action="store_true", help="a small random model, built once into the cache folder")
    add("--served-model-name", metavar="NAME", help="the name clients ask for (default: PATH, tiny or fake)")
    add("--listen", type=address, default="127.0.0.1:8000", metavar="HOST:PORT", help="HTTP; port 0: any")
    add("--health-listen", type=address, metavar="HOST:PORT", help="grpc.health.v1; off when absent")
    add("--threads", type=at_least(1), metavar="N", help="torch threads")
    add("--seed", type=int, default=0, metavar="N", help="seed of everything random")
    add("--cache-dir", type=Path, default=default_cache(), metavar="DIR", help="where --tiny keeps its model")
    add("--max-running", type=at_least(1), default=256, metavar="N", help="most requests in a batch")
    add("--max-waiting", type=at_least(0), default=16_384, metavar="N", help="most that wait; more get 503")
    add("--max-model-len", type=at_least(2), metavar="N", help="tokens of prompt and answer; fake: 32768")
    add("--grace-s", type=non_negative, default=5.0, metavar="S", help="time to finish requests at the end")
    add("--log-level", choices=("debug", "info", "warning", "error"), default="info", help="on stderr")
    fake = parser.add_argument_group("fake engine", "the latency model; see model_pod/fake_scheduler.py")
    fake.add_argument("--priority-scheduling", action="store_true", help="lower `priority` first, as in vLLM")
    fake.add_argument("--faults", type=address, metavar="HOST:PORT", help="where PUT /fault sets a fault")
    for owner in (Costs, Lengths):
        for field in fields(owner):
            kind = at_least(1) if isinstance(field.default, int) else non_negative
            flag, text = "--" + field.name.replace("_", "-"), field.metadata["help"]
            fake.add_argument(flag, type=kind, default=field.default, metavar="N", help=text)
    return parser


def _pick(owner: type[T], args: argparse.Namespace) -> T:
    return owner(**{field.name: getattr(args, field.name) for field in fields(owner)})  # type: ignore[arg-type]


def address(text: str) -> Address:
    """`host:port` or `[v6]:port`."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not host or not port.isascii() or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT or [V6]:PORT")
    if ":" in host and not bracketed:
        raise argparse.ArgumentTypeError(f"{text!r}: write an IPv6 address in brackets")
    return Address(host.strip("[]") if bracketed else host, int(port))


def at_least(least: int) -> Callable[[str], int]:
    def check(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is below {least}")
        return value

    return check


def non_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def default_cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "headgate"
