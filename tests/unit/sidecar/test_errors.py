"""The refusal table, against the contract with clients and with Envoy."""

import ast
import re
from pathlib import Path
from typing import Final

import pytest

from sidecar import errors
from sidecar.errors import ConfigError, ProtocolError, Refusal

REFUSALS: Final = [value for value in vars(errors).values() if isinstance(value, Refusal)]
BY_REASON: Final = {refusal.reason: refusal for refusal in REFUSALS}

# DESIGN section 4: reason, status, whether the client's connection ends with it.
CONTRACT: Final = """
malformed             400  closed
uri_too_long          414  closed
not_implemented       501  closed
version               505  closed
expectation           417  closed
request_timeout       408  closed
body_too_large        413  closed
headers_too_large     431  closed
unauthenticated       401
forbidden             403
rate_limited          429
exceeds_quota         400
overloaded            503
queue_full            503
queue_timeout         503
preempted             503
no_endpoint           503
too_many_connections  503  closed
connect_failed        502
upstream_reset        502
upstream_protocol     502
first_token_timeout   504
stalled               504
timeout               504
draining              503  closed
loop                  508
client_gone           499
internal              500
"""
# Where another pod may do better, so Envoy tries one.
ELSEWHERE: Final = {"connect_failed", "overloaded", "queue_full", "queue_timeout", "no_endpoint", "draining"}
# Where the caller is told when to come back, or that it need not.
INVITING: Final = (ELSEWHERE - {"connect_failed"}) | {
    "preempted",
    "rate_limited",
    "exceeds_quota",
    "too_many_connections",
}

# Reasons whose part is not built.
UNBUILT: Final = {
    "rate_limited": "limits",
    "exceeds_quota": "limits",
}


def referenced() -> set[str]:
    """Names that the sidecar's other files use, be it only to compare with. Imports alone do not count."""
    paths = [path for path in Path(errors.__file__).parent.rglob("*.py") if path != Path(errors.__file__)]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return names | {node.attr for node in nodes if isinstance(node, ast.Attribute)}


def test_the_table_is_the_contract() -> None:
    lines = [line.split() for line in CONTRACT.strip().splitlines()]
    expected = [(reason, int(status), closed == ["closed"]) for reason, status, *closed in lines]
    assert sorted((r.reason, r.status, r.close) for r in REFUSALS) == sorted(expected)


def test_a_reason_is_one_word_and_means_one_thing() -> None:
    assert len(BY_REASON) == len(REFUSALS)
    assert [reason for reason in BY_REASON if not re.fullmatch("[a-z]+(_[a-z]+)*", reason)] == []


def test_what_another_pod_may_do_better() -> None:
    assert {refusal.reason for refusal in REFUSALS if refusal.elsewhere} == ELSEWHERE


def test_who_is_told_whether_to_return() -> None:
    assert {refusal.reason for refusal in REFUSALS if refusal.inviting} == INVITING


def test_every_message_is_a_sentence_for_callers() -> None:
    assert [r.reason for r in REFUSALS if not re.fullmatch(r"[A-Z][^\n]{10,}\.", r.message)] == []


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.reason)
def test_kinds_follow_openais(refusal: Refusal) -> None:
    """Its SDKs tell errors apart by status; people read the type."""
    kinds = {
        401: "authentication_error",
        403: "permission_error",
        429: "rate_limit_error",
    }
    ours = "server_error" if refusal.status >= 500 else "invalid_request_error"
    if refusal.reason not in ("not_implemented", "version"):  # the caller's fault, with a status of 5xx
        assert refusal.kind == kinds.get(refusal.status, ours)


def test_no_reason_is_left_over() -> None:
    """Each is mentioned in some other file, and those of parts that are not built in none.

    That its situation leads to it is for the tests of the part that answers with it.
    """
    names = {name: value.reason for name, value in vars(errors).items() if isinstance(value, Refusal)}
    mentioned = referenced()
    assert {reason for name, reason in names.items() if name not in mentioned} == set(UNBUILT)


def test_a_protocol_error_carries_its_answer() -> None:
    error = ProtocolError(errors.MALFORMED, "no host")
    assert (str(error), error.refusal, error.detail) == ("malformed: no host", errors.MALFORMED, "no host")


def test_a_configuration_error_names_its_key() -> None:
    assert str(ConfigError("limits[0].burst", "is required")) == "limits[0].burst: is required"
    assert str(ConfigError("", "cannot read x")) == "cannot read x"
