"""Make audiences equal to a source: read, plan, guard, push, acknowledge, report."""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace

from airflow_provider_talon_cdp.exceptions import GuardError, NotFoundError
from airflow_provider_talon_cdp.ids import MAX_CHANGES
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.ledger import Ledger, StagedPlan
from airflow_provider_talon_cdp.sync.plan import Letters, Planned, Source, now, plan
from airflow_provider_talon_cdp.sync.push import Landing
from airflow_provider_talon_cdp.sync.report import SyncReport
from airflow_provider_talon_cdp.sync.resume import Cursor, Earlier, counted
from airflow_provider_talon_cdp.sync.run import MeteredSender, fail_if_rejected, send_all

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_FLUSHES = 2.0


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
            cursor: Tells a retry that the plan in force is the one that the try before it was sending. The guard has
                passed that plan, so what is left of it is sent at once; then all is planned anew, as without a cursor.

        Raises:
            GuardError: The plan is beyond the limits; nothing of it was sent or recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written; nothing was sent, or the push stopped.
            RejectedRecordsError: Everything good was sent and recorded, but too much was rejected.
            RequestError: The push stopped early; what was acknowledged is recorded.
        """
        began = time.monotonic()
        with self.ledger.locked(owner):
            earlier = self._finish(cursor) if cursor and self._is_left_by(cursor) else Earlier()
            report = self._sync(cursor, earlier)
            if cursor:
                cursor.set(0)
            report = replace(
                report,
                seconds=time.monotonic() - began,
                dead_letters=self.ledger.dead_letters,
                ledger_version=self.ledger.version,
            )
        log.info("Done: %s", report)
        fail_if_rejected(report, self.max_rejected)
        return report

    def dry_run(self, requests_per_second: float) -> SyncReport:
        """Plan and guard, and send and record nothing.

        Args:
            requests_per_second: For the estimate of the time that the plan would take.
        """
        began = time.monotonic()
        self.ledger.load()
        counts = plan(
            self.source,
            lambda planner: sum(1 for _ in planner(self.ledger.known(), self.ledger.uncertain())),
            managed=self.managed,
        ).counts
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

    def _is_left_by(self, cursor: Cursor) -> bool:
        """Whether the plan in force is the one that the try before this one was sending, and can be sent to its end."""
        # What is left of a plan is too little for an audience that has lost its members.
        return 0 < self.ledger.version == cursor.get() and not self.ledger.suspected

    def _finish(self, cursor: Cursor) -> Earlier:
        """Send what an earlier try left of its plan, without reading the source."""
        counts = PlanCounts()
        staged = self.ledger.stage(lambda *_: counted(self.ledger.unacknowledged(), counts))
        log.info("Resuming the plan of an earlier try: %s changes are left.", f"{counts.changes:,}")
        if not counts.changes:
            self.ledger.discard(staged)
            return Earlier()
        if lost := self._created(counts, ()):
            self._discard_lost(staged, lost)
            return Earlier(lost=lost)
        refused: set[Member] = set()

        def note(member: Member) -> bool:
            # One at a time costs requests, so there are never many of them.
            refused.add(member)
            return True

        self._enforce(staged, cursor)
        pushed = self._push(counts, note)
        log.info("That plan is finished: %s. Now the source is planned anew.", pushed)
        return Earlier(pushed=pushed, refused=refused)

    def _sync(self, cursor: Cursor | None, earlier: Earlier) -> SyncReport:
        """Plan the source as it is now, and send what the guard lets pass."""
        planned, passed = self._plan(earlier)
        if passed and planned.counts.changes:
            created = self._created(planned.counts, earlier.lost)
            if lost := [each for each in created if planned.counts.known[each]]:
                # The ledger's members of an audience that had to be created are gone: they were deleted with it.
                self._discard_lost(planned.staged, lost)
                planned, passed = self._plan(replace(earlier, lost=[*earlier.lost, *lost]))
        self._bury(planned.letters)
        counts = planned.counts
        if passed and counts.changes:
            self._enforce(planned.staged, cursor)
            pushed = self._push(counts, lambda member: member not in earlier.refused)
            return earlier.joined(_report(counts, pushed), planned.again)
        self.ledger.discard(planned.staged)
        self.ledger.flush()
        if not passed:
            log.warning("The source has no member and on_empty is 'skip': its plan was not sent.")
        return earlier.joined(_report(counts))

    def _plan(self, earlier: Earlier) -> tuple[Planned[StagedPlan], bool]:
        """Plan, and ask the guard whether to send that."""
        planned = plan(
            self.source,
            lambda planner: self.ledger.stage(planner, forget=earlier.lost),
            managed=self.managed,
            refused=earlier.refused,
        )
        try:
            return planned, self.guard.check(planned.counts) == "send"
        except GuardError as error:
            self.ledger.discard(planned.staged)
            if earlier.pushed:
                raise GuardError(
                    f"{error} That is about the plan of the source as it is now; {earlier.pushed.sent:,} changes that an "
                    "earlier try had left of its plan were sent before."
                ) from error
            raise

    def _created(self, counts: PlanCounts, lost: Collection[str]) -> Collection[str]:
        """Create the audiences that do not exist, and return them."""
        # If this dies after it has created an audience, the next run must not take its members for granted.
        self.ledger.suspect([*counts.audiences, *lost])
        return self.prepare(counts.audiences)

    def _discard_lost(self, staged: StagedPlan, lost: Collection[str]) -> None:
        log.warning(
            "Talon.One had lost %d audience(s) that the ledger has members of; all are added again.",
            len(lost),
        )
        self.ledger.discard(staged)

    def _enforce(self, staged: StagedPlan, cursor: Cursor | None) -> None:
        self.ledger.enforce(staged)
        if cursor:
            cursor.set(self.ledger.version)

    def _bury(self, letters: Letters) -> None:
        for number, letter in enumerate(letters, start=1):
            self.ledger.reject(letter)
            if number % MAX_CHANGES == 0:
                self.ledger.flush()

    def _push(self, counts: PlanCounts, needs_letter: Callable[[Member], bool]) -> SyncReport:
        flushed = time.monotonic()

        def on_landed(landing: Landing) -> None:
            nonlocal flushed
            for _, change, error in landing.refusals:
                if not needs_letter((change.profile_id, str(change.audience_id))):
                    continue
                self.ledger.reject(
                    {
                        "time": now(),
                        "profile_id": change.profile_id,
                        "audience_id": change.audience_id,
                        "action": change.action,
                        "reason": str(error),
                        "status": error.status,
                        "request_uuid": error.request_uuid,
                    }
                )
            self.ledger.landed(landing.number, [refusal.position for refusal in landing.refusals])
            if time.monotonic() - flushed > _SECONDS_BETWEEN_FLUSHES:
                self.ledger.flush()
                flushed = time.monotonic()

        try:
            return send_all(
                self.ledger.changes(),
                self.sender(),
                in_flight=self.in_flight,
                on_leaving=self.ledger.leaving,
                on_landed=on_landed,
                total=counts.changes,
            )
        except NotFoundError:
            # Whoever deleted an audience may make it again by hand, without its members.
            self.ledger.suspect(counts.audiences)
            raise
        finally:
            self.ledger.flush()


def _report(counts: PlanCounts, pushed: SyncReport | None = None) -> SyncReport:
    """Join the counts of the plan with those of the push, or say that nothing of the plan was sent."""
    return SyncReport(
        read=counts.read,
        removals=counts.removals.total(),
        unchanged=counts.unchanged,
        sent=pushed.sent if pushed else 0,
        duplicate=counts.duplicate + (pushed.duplicate if pushed else 0),
        rejected=counts.rejected + Counter(pushed.rejected if pushed else {}),
        unsent=pushed.unsent if pushed else counts.changes,
        requests=pushed.requests if pushed else 0,
        retries=pushed.retries if pushed else 0,
        throttled=pushed.throttled if pushed else 0,
        seconds=0.0,
    )
