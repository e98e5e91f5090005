"""Make audiences equal to a source: read, plan, guard, push, acknowledge, report."""

from __future__ import annotations

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeAlias, TypeVar

from airflow_provider_talon_cdp.exceptions import GuardError, NotFoundError, RejectedError
from airflow_provider_talon_cdp.ids import MAX_CHANGES
from airflow_provider_talon_cdp.sync.changes import Batch, Change, Record, Rejection
from airflow_provider_talon_cdp.sync.delivery import halving
from airflow_provider_talon_cdp.sync.diff import (
    Member,
    OutOfOrderError,
    PlanCounts,
    diff,
    externally_sorted,
    members,
)
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.ledger import Ledger, Planner, StagedPlan
from airflow_provider_talon_cdp.sync.push import Flight
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally
from airflow_provider_talon_cdp.sync.run import MeteredSender, fail_if_rejected, send_all

log = logging.getLogger(__name__)
T = TypeVar("T")

Source: TypeAlias = Callable[[], Iterable[Record]]
"""Reads the wanted members from the start; called again when they turn out not to be sorted by bytes."""

Planned: TypeAlias = "tuple[PlanCounts, _Letters, StagedPlan]"

_SECONDS_BETWEEN_FLUSHES = 2.0


class Cursor(Protocol):
    """A number that outlives a try of the task."""

    def get(self) -> int:
        """Return it, or 0."""
        ...

    def set(self, version: int) -> None:
        """Keep it."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """One mirror run.

    Args:
        source: The wanted members.
        ledger: What Talon.One acknowledged.
        guard: Limits of what may change.
        sender: Opened when the guard has passed.
        managed: Audiences that may change; None for all of the ledger and the source.
        prepare: Called with the audiences that will change, after the guard and before the changes are sent; returns
            those that it had to create.
        in_flight: Requests in flight at the most.
        max_rejected: Rejected records that are put up with; None for any number.
    """

    source: Source
    ledger: Ledger
    guard: Guard
    sender: Callable[[], AbstractAsyncContextManager[MeteredSender]]
    managed: Collection[str] | None = None
    prepare: Callable[[Sequence[str]], Collection[str]] = lambda _: ()
    in_flight: int = 64
    max_rejected: int | None = 0

    def run(self, owner: str, cursor: Cursor | None = None) -> SyncReport:
        """Plan, guard, push and record.

        Args:
            owner: Who runs this; a retry has the owner of the try before it.
            cursor: Tells a retry which plan the try before it was sending, so that it need not plan again.

        Raises:
            GuardError: The plan is beyond the limits; nothing was sent or recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written; nothing was sent, or the push stopped.
            RejectedRecordsError: Everything good was sent and recorded, but too much was rejected.
            RequestError: The push stopped early; what was acknowledged is recorded.
        """
        began = time.monotonic()
        with self.ledger.locked(owner):
            resumed = bool(
                cursor
                and self.ledger.version
                and cursor.get() == self.ledger.version
                # What is left of a plan is too little for an audience that has lost its members.
                and not self.ledger.suspected
            )
            report = self._sync(cursor, resumed=resumed)
            report = replace(
                report,
                seconds=time.monotonic() - began,
                dead_letters=self.ledger.dead_letters,
                ledger_version=self.ledger.version,
            )
        log.info("Done: %s", report)
        fail_if_rejected(report, self.max_rejected)
        return report

    def _sync(self, cursor: Cursor | None, *, resumed: bool) -> SyncReport:
        counts, letters, staged = self._resume() if resumed else self._plan()
        try:
            sends = resumed or self.guard.check(counts) == "send"
        except GuardError:
            self.ledger.discard(staged)
            raise
        if not sends:
            self.ledger.discard(staged)
            log.warning("The source has no member and on_empty is 'skip': nothing was sent.")
            return _report(counts)
        if counts.changes:
            # If this dies after it has created an audience, the next run must not take its members for granted.
            self.ledger.suspect(counts.audiences)
            lost = [each for each in self.prepare(counts.audiences) if resumed or counts.known[each]]
            if lost:
                # The ledger's members of an audience that had to be created are gone: they were deleted with it.
                log.warning(
                    "Talon.One had lost %d audience(s) that the ledger has members of; all are added again.",
                    len(lost),
                )
                self.ledger.discard(staged)
                counts, letters, staged = self._plan(forget=lost)
                try:
                    self.guard.check(counts)
                except GuardError:
                    self.ledger.discard(staged)
                    raise
        self._bury(letters)
        if not counts.changes:
            self.ledger.discard(staged)
            self.ledger.flush()
            report = _report(counts)
        else:
            self.ledger.enforce(staged, counts.rejected)
            if cursor:
                cursor.set(self.ledger.version)
            report = self._push(counts)
        if cursor:
            cursor.set(0)
        return report

    def dry_run(self, requests_per_second: float) -> SyncReport:
        """Plan and guard, and send and record nothing.

        Args:
            requests_per_second: For the estimate of the time that the plan would take.
        """
        began = time.monotonic()
        self.ledger.load()
        counts, _, _ = self._plan_with(
            lambda plan: sum(1 for _ in plan(self.ledger.known(), self.ledger.uncertain()))
        )
        try:
            verdict = {"send": "would be sent", "skip": "would be skipped"}[self.guard.check(counts)]
        except GuardError as error:
            verdict = f"would be refused: {error}"
        requests = math.ceil(counts.changes / MAX_CHANGES)
        log.info("Dry run, nothing was sent or recorded. The plan %s.", verdict)
        log.info(
            "It takes %s requests: %.1f s at %g a second.",
            f"{requests:,}",
            requests / requests_per_second,
            requests_per_second,
        )
        return replace(
            _report(counts),
            requests=requests,
            seconds=time.monotonic() - began,
            verdict=verdict,
            ledger_version=self.ledger.version,
        )

    def _plan(self, forget: Collection[str] = ()) -> Planned:
        return self._plan_with(lambda plan: self.ledger.stage(plan, forget=forget))

    def _resume(self) -> Planned:
        """Plan what an earlier try of this task left open."""
        counts = PlanCounts()
        counts.rejected.update(self.ledger.rejected())
        counts.read += counts.rejected.total()

        def plan(_: Iterable[Member], __: Iterable[Member]) -> Iterable[Change]:
            for change in self.ledger.unacknowledged():
                (counts.additions if change.action == "add" else counts.removals)[
                    str(change.audience_id)
                ] += 1
                counts.read += change.action == "add"
                yield change

        staged = self.ledger.stage(plan)
        log.info("Resuming the plan of an earlier try: %s changes are left.", f"{counts.changes:,}")
        return counts, _Letters(), staged

    def _plan_with(self, consume: Callable[[Planner], T]) -> tuple[PlanCounts, _Letters, T]:
        try:
            planned = self._plan_once(consume, self.source)
        except OutOfOrderError:
            log.info(
                "The source is not sorted by bytes: its rows are read again and sorted on this worker's disk."
            )
            planned = self._plan_once(consume, lambda: externally_sorted(self.source()))
        counts = planned[0]
        log.info(
            "Plan: %s to add, %s to remove, %s unchanged; the ledger has %s members.",
            f"{counts.additions.total():,}",
            f"{counts.removals.total():,}",
            f"{counts.unchanged:,}",
            f"{counts.known.total():,}",
        )
        return planned

    def _plan_once(self, consume: Callable[[Planner], T], source: Source) -> tuple[PlanCounts, _Letters, T]:
        counts = PlanCounts()
        letters = _Letters()

        def keep(rejection: Rejection) -> None:
            if rejection.profile_id:
                letter = {"time": _now(), "profile_id": rejection.profile_id, "reason": rejection.reason}
                letters.file.write(json.dumps(letter) + "\n")

        def plan(known: Iterable[Member], uncertain: Iterable[Member]) -> Iterable[Change]:
            wanted = members(source(), counts, on_rejected=keep)
            return diff(known, wanted, counts, uncertain=uncertain, managed=self.managed)

        return counts, letters, consume(plan)

    def _bury(self, letters: _Letters) -> None:
        letters.file.seek(0)
        for number, letter in enumerate(letters.file, start=1):
            self.ledger.reject(json.loads(letter))
            if number % MAX_CHANGES == 0:
                self.ledger.flush()

    def _push(self, counts: PlanCounts) -> SyncReport:
        tally = Tally()
        began = flushed = time.monotonic()

        def on_landed(flight: Flight[Batch]) -> None:
            nonlocal flushed
            if flight.refusals:
                changes = flight.batch.changes
                for position, error in flight.refusals:
                    self.ledger.reject(_letter(changes[position], error))
            self.ledger.landed(flight.number, [refusal.position for refusal in flight.refusals])
            if time.monotonic() - flushed > _SECONDS_BETWEEN_FLUSHES:
                self.ledger.flush()
                flushed = time.monotonic()

        def progress() -> str:
            rate = tally.sent / (time.monotonic() - began)
            left = (counts.changes - tally.sent) / rate
            return f"{tally.sent:,} of {counts.changes:,} sent, {rate:,.0f} a second, {left:,.0f} s left"

        try:
            send_all(
                self.ledger.batches(),
                self.sender(),
                halving,
                tally,
                in_flight=self.in_flight,
                progress=progress,
                report=lambda: _report(counts, tally),
                on_leaving=self.ledger.leaving,
                on_landed=on_landed,
            )
        except NotFoundError:
            # Whoever deleted an audience may make it again by hand, without its members.
            self.ledger.suspect(counts.audiences)
            raise
        finally:
            self.ledger.flush()
        return _report(counts, tally)


def _report(counts: PlanCounts, tally: Tally | None = None) -> SyncReport:
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


def _letter(change: Change, error: RejectedError) -> dict[str, Any]:
    return {
        "time": _now(),
        "profile_id": change.profile_id,
        "audience_id": change.audience_id,
        "action": change.action,
        "reason": str(error),
        "status": error.status,
        "request_uuid": error.request_uuid,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class _Letters:
    """Records that a plan leaves out, in a temporary file: there may be more of them than fit in memory."""

    def __init__(self) -> None:
        self.file = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed below

    def __del__(self) -> None:
        self.file.close()
