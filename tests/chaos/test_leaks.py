"""A hundred thousand requests with random faults leak no connection, task, slot or byte.

One storm (see `storm`); each test looks at it from another side. `HEADGATE_CHAOS_SEED` and
`HEADGATE_CHAOS_REQUESTS` make it another one.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

import pytest

from sidecar import errors
from tests.chaos.clients import LEFT
from tests.chaos.faults import FAULTS, STRAY, WHOLE
from tests.chaos.malformed import FORBIDDEN, REFUSED
from tests.chaos.storm import Report, storm

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SEED: Final = os.environ.get("HEADGATE_CHAOS_SEED", "1")
REQUESTS: Final = int(os.environ.get("HEADGATE_CHAOS_REQUESTS", "100000"))
MOST_MEMORY: Final = 12 * 2**20  # bytes beyond what the warm-up left
_LOG_LINE: Final = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING) headgate\.\w+: ")
# Refusals that a storm cannot provoke, or that are for what is not built.
_NEVER: Final = {"unauthenticated", "rate_limited", "exceeds_quota", "preempted", "loop", "internal"}
_NEVER_HERE: Final = {"no_endpoint", "draining"}  # the engine counts as healthy; nobody is there at the end


@pytest.fixture(scope="module", params=[SEED], ids=[f"seed={SEED}"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Report:
    found = storm(tmp_path_factory.mktemp("storm"), REQUESTS, request.param)
    print(summary(found))
    return found


def summary(report: Report) -> str:
    """For whoever looks (`pytest -s`)."""
    tally = report.tallies[-1]
    ends = report.counted.ends
    before, after = report.before.resident / 2**20, report.after.resident / 2**20
    return (
        f"\n{tally.requests} requests in {tally.seconds:.0f} s, {tally.answered} answered, "
        f"{report.reloads} reloads; memory {before:.1f} MB, then {after:.1f} MB\n"
        + "\n".join(f"  {count:7} {status} {reason}" for (status, reason), count in ends.most_common())
    )


def first(found: Iterable[str]) -> list[str]:
    """Enough to see what is wrong."""
    return sorted(found)[:20]


def met(report: Report) -> Counter[str]:
    """Fault and outcome, how often, of all who waited for their answer."""
    return sum((Counter(tally.met) for tally in report.tallies), Counter())


def test_every_answer_is_one_that_may_be(report: Report) -> None:
    assert sum(tally.requests for tally in report.tallies) >= REQUESTS
    assert [wrong for tally in report.tallies for wrong in tally.wrong] == []


def test_the_engine_got_requests_one_by_one(report: Report) -> None:
    assert report.engine.wrong == []
    preempted = Counter({record.request_id: record.attempts - 1 for record in report.records})
    assert Counter(report.engine.again) - preempted == Counter()
    assert preempted.total() == report.counted.preempted
    assert report.engine.open == 0


def test_no_fault_is_missing(report: Report) -> None:
    """A storm in which nothing happened proves nothing."""
    expected = {f"{fault.name} {outcome}" for fault in FAULTS.values() for outcome in fault.outcomes}
    expected |= {f"- {reason}" for _, reason in (*REFUSED, *FORBIDDEN)}
    assert first(expected - met(report).keys()) == []
    reasons = {refusal.reason for refusal in vars(errors).values() if isinstance(refusal, errors.Refusal)}
    assert first(reasons - _NEVER - _NEVER_HERE - {reason for _, reason in report.counted.ends}) == []
    assert report.reloads > 0


def test_who_asks_for_no_fault_is_served(report: Report) -> None:
    """Other callers' faults may hit it, but not as a rule."""
    ends = {key.partition(" ")[2]: count for key, count in met(report).items() if key.startswith("ok ")}
    assert ends[WHOLE] > sum(ends.values()) / 2, ends


@pytest.mark.parametrize("reason", STRAY)
def test_stray_faults_are_rare(report: Report, reason: str) -> None:
    """A connection that ended, or noise on it, when it was just chosen; or else an answer was lost."""
    strays = total = 0
    for key, count in met(report).items():
        name, outcome = key.split(" ")
        if name in FAULTS:
            total += count
            strays += count if outcome == reason and reason not in FAULTS[name].outcomes else 0
    assert strays < STRAY[reason] * total


def misfits(report: Report) -> Iterator[str]:
    """Where records and clients do not agree."""
    records = {record.request_id: record for record in report.records}
    if len(records) < len(report.records):
        twice = Counter(record.request_id for record in report.records)
        yield from (f"{name} has {count} records" for name, count in twice.items() if count > 1)
    for name, made in report.made.items():
        record = records.get(name)
        if record is None:
            if made.outcome != LEFT:
                yield f"{name} ended in {made} without a record"
        elif made.outcome != LEFT:
            same = record.reason != "" if made.reason == "?" else record.reason == made.reason
            same &= made.outcome != WHOLE or record.bytes_out == made.size
            if record.status != made.status or not same:
                yield f"{name} ended in {made}, its record says {record}"
    for name in records.keys() - report.made.keys():
        # Who left at once has not read that there were too many.
        if records[name].reason != errors.TOO_MANY_CONNECTIONS.reason:
            yield f"{records[name]} is of no request that was made"


def test_every_answer_has_its_record_and_every_record_its_request(report: Report) -> None:
    assert first(misfits(report)) == []


def test_metrics_and_records_say_the_same(report: Report) -> None:
    counted = report.counted
    assert counted.dropped_lines == 0
    assert counted.ends == Counter((record.status, record.reason) for record in report.records)
    assert counted.bytes_out == sum(record.bytes_out for record in report.records)
    assert all(status != 500 for status, _ in counted.ends)


def test_limits_are_kept_at_every_moment(report: Report) -> None:
    assert report.excesses == []


def test_nothing_is_under_way_when_everybody_has_gone(report: Report) -> None:
    assert {name: value for name, value in report.before.gauges.items() if value} == {}
    assert {name: value for name, value in report.after.gauges.items() if value} == {}


def test_the_process_holds_no_more_than_before(report: Report) -> None:
    assert report.after.more_than(report.before) == {}
    assert report.after.resident - report.before.resident < MOST_MEMORY


def test_the_log_is_clean(report: Report) -> None:
    assert first(line for line in report.log if not _LOG_LINE.match(line)) == []


def test_it_ends_well(report: Report) -> None:
    assert report.exit_status == 0
