"""`headgate endpoints`: where one sidecar can send work, as its admin port tells it.

The table is for people; `--json` prints what came, byte for byte.
"""

from __future__ import annotations

import json
from http.client import HTTPException
from typing import Any, Final, TypeGuard
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from rich.table import Table
from rich.text import Text

PATH: Final = "/debug/endpoints"
_TIMEOUT_S: Final = 5.0
_MAX_BYTES: Final = 16 * 1024 * 1024
_NOTHING: Final = "-"
_COLUMNS: Final = (
    "pod", "kind", "address", "state", "reason", "until", "voters", "in flight", "waiting+running",
    "utilization", "heard",
)  # fmt: skip
_NUMBERS: Final = frozenset({"until", "in flight", "waiting+running", "utilization", "heard"})


class Unreachable(Exception):
    """A sentence that says what is wrong with the admin port."""


def is_address(admin: str) -> bool:
    """Whether that is what `fetch` takes: http, a host, and nothing behind the port."""
    try:
        parts = urlsplit(admin)
        port = parts.port
    except ValueError:
        return False
    rest = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    return parts.scheme == "http" and bool(parts.hostname) and port != 0 and not rest


def fetch(admin: str) -> bytes:
    """What the sidecar with this admin port says; raises Unreachable."""
    url = admin.rstrip("/") + PATH
    try:
        # An admin port is near: no proxy of the environment stands before it.
        with build_opener(ProxyHandler({})).open(url, timeout=_TIMEOUT_S) as answer:
            page: bytes = answer.read(_MAX_BYTES + 1)
    except HTTPError as error:
        error.close()
        raise Unreachable(f"{url} answers {error.code}: is it a sidecar's admin port?") from None
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise Unreachable(f"{url} cannot be reached: {why}") from None
    if len(page) > _MAX_BYTES:
        raise Unreachable(f"{url} answers with more than {_MAX_BYTES} bytes")
    return page


def read(page: bytes) -> list[dict[str, Any]]:
    """The endpoints; raises Unreachable when that is not what it is."""
    try:
        found = json.loads(page)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Unreachable("the answer is no list of endpoints: is it a sidecar's admin port?")
    return found


def table(found: list[dict[str, Any]]) -> Table:
    """A row for each; seconds and counts to the right."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        shown.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    for one in found:
        shown.add_row(*map(Text, _row(one)))  # nothing in it is markup
    return shown


def _row(one: dict[str, Any]) -> list[str]:
    voters = one.get("voters")
    return [
        _text(one.get("pod")),
        _text(one.get("kind")),
        _text(one.get("address")),
        _text(one.get("state")),
        _text(one.get("why")),
        _number(one.get("until_s"), "{:.0f} s"),
        _text(" ".join(map(str, voters)) if isinstance(voters, list) else None),
        _number(one.get("in_flight"), "{:.0f}"),
        _number(_held(one), "{:.0f}"),
        _number(one.get("utilization"), "{:.2f}"),
        _number(one.get("heard_s"), "{:.1f} s"),
    ]


def _held(one: dict[str, Any]) -> object:
    """A peer says so in one number; of the engine beside it a sidecar knows what that says of itself."""
    load = one.get("load")
    if not isinstance(load, dict):
        return one.get("waiting_and_running")
    waiting, running = load.get("waiting"), load.get("running")
    return waiting + running if _is_number(waiting) and _is_number(running) else None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: object, form: str) -> str:
    return form.format(value) if _is_number(value) else _NOTHING


def _text(value: object) -> str:
    """As it is, but nothing in it moves the cursor."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text) or _NOTHING
