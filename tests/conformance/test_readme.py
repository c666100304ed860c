"""The README says of refusals what the code says."""

import re
from pathlib import Path

from sidecar import errors

README = Path(__file__).parents[2] / "README.md"
# Accepted words whose part is not built, and the one that nobody is told.
NOT_SHOWN = {"rate_limited", "exceeds_quota", "preempted", "client_gone"}


def test_the_table_of_refusals_is_that_of_the_code() -> None:
    table = README.read_text().partition("<!-- refusals")[2].partition("<!-- end of refusals")[0]
    shown = set(re.findall(r"^\| `(\w+)` \| (\d+) \| (.+) \|$", table, re.MULTILINE))
    rows = [row for row in vars(errors).values() if isinstance(row, errors.Refusal)]
    assert shown == {(r.reason, str(r.status), r.message) for r in rows if r.reason not in NOT_SHOWN}
