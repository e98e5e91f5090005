"""Compare a source with the ledger: what a mirror would change now."""

from __future__ import annotations

import json
import logging
import tempfile
import weakref
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeAlias, TypeVar

from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.diff import Member, OutOfOrderError, PlanCounts
from airflow_provider_talon_cdp.sync.kind import Comparison, Kind
from airflow_provider_talon_cdp.sync.ledger import Ledger, Planner
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally

log = logging.getLogger(__name__)
T = TypeVar("T")

Source: TypeAlias = Callable[[], Iterable[Any]]
"""Reads the wanted records from the start; called again when they turn out not to be sorted by bytes."""


class Letters:
    """Dead letters of a plan, in a temporary file: there may be more of them than fit in memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed with this object
        # Not by __del__, before which the garbage collector may have taken the file.
        weakref.finalize(self, self._file.close)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        self._file.seek(0)
        return map(json.loads, self._file)

    def keep(self, rejection: Rejection) -> None:
        """Write a letter about a record that has an ID."""
        if rejection.profile_id:
            letter = {"time": now(), "profile_id": rejection.profile_id, "reason": rejection.reason}
            self._file.write(json.dumps(letter) + "\n")


@dataclass(frozen=True)
class Planned(Generic[T]):
    """A plan of the source as it is now.

    Args:
        staged: What was made of its changes.
        counts: Of its changes, and of the records that were read.
        letters: About records that cannot be members.
        again: Those of the refused members that it changes.
        comparison: What knows how to send it.
    """

    staged: T
    counts: PlanCounts
    letters: Letters
    again: set[Member]
    comparison: Comparison


def plan(
    source: Source,
    kind: Kind,
    ledger: Ledger,
    consume: Callable[[Planner], T],
    *,
    refused: Collection[Member] = (),
) -> Planned[T]:
    """Plan what makes the ledger equal to a source.

    Args:
        source: What is wanted.
        kind: Members or attributes.
        ledger: What Talon.One has.
        consume: Called with the planner; called again where the source is not sorted, and must start anew then.
        refused: Members to look out for; ``Planned.again`` has those that the plan changes.
    """
    try:
        planned = _plan_once(source, kind.compare(ledger), consume, refused, lambda records: records)
    except OutOfOrderError:
        log.info(
            "The source is not sorted by bytes: its rows are read again and sorted on this worker's disk."
        )
        planned = _plan_once(source, kind.compare(ledger), consume, refused, kind.sort)
    log.info("Plan: %s. Ledger: %s", kind.describe(planned.counts), ledger.place)
    return planned


def report_of(counts: PlanCounts, tally: Tally | None = None) -> SyncReport:
    """Join the counts of the plan with those of the push, or say that nothing of the plan was sent."""
    tally = tally or Tally()
    return SyncReport(
        read=counts.read,
        removals=counts.removals.total(),
        unchanged=counts.unchanged,
        sent=tally.sent,
        duplicate=counts.duplicate,
        rejected=counts.rejected + tally.rejected,
        unsent=tally.unsent + counts.changes - tally.launched,
        requests=tally.requests,
        retries=tally.retries,
        throttled=tally.throttled,
        seconds=0.0,
    )


def now() -> str:
    """Return the time as dead letters have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _plan_once(
    source: Source,
    comparison: Comparison,
    consume: Callable[[Planner], T],
    refused: Collection[Member],
    arrange: Callable[[Iterable[Any]], Iterable[Any]],
) -> Planned[T]:
    counts = PlanCounts()
    letters = Letters()
    again: set[Member] = set()
    with ExitStack() as stack:
        records = stack.enter_context(_closed_at_the_end(source()))

        def planner(known: Iterable[Member], uncertain: Iterable[Member]) -> Iterable[Change]:
            arranged = stack.enter_context(_closed_at_the_end(arrange(records)))
            changes = comparison.changes(arranged, known, uncertain, counts, letters.keep)
            return _noting(changes, refused, again) if refused else changes

        return Planned(consume(planner), counts, letters, again, comparison)


@contextmanager
def _closed_at_the_end(records: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Close the source's cursor, before anybody opens another one, and the files of a sort."""
    try:
        yield records
    finally:
        if isinstance(records, Generator):
            records.close()


def _noting(changes: Iterable[Change], refused: Collection[Member], again: set[Member]) -> Iterator[Change]:
    for change in changes:
        member = (change.profile_id, str(change.audience_id))
        if member in refused:
            again.add(member)
        yield change
