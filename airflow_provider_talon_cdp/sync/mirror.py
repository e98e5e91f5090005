"""Make Talon.One equal to a source: read, plan, guard, push, acknowledge, report."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace

from airflow_provider_talon_cdp.contract import MAX_CHANGES
from airflow_provider_talon_cdp.exceptions import GuardError, RequestError
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.garbage import rare_collections
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.kind import Kind, Travelling
from airflow_provider_talon_cdp.sync.ledger import Ledger, StagedPlan
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.plan import Letters, Planned, Source, plan, report_of
from airflow_provider_talon_cdp.sync.push_plan import push_plan
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally
from airflow_provider_talon_cdp.sync.resume import Cursor, Earlier, counted
from airflow_provider_talon_cdp.sync.run import Metered, fail_if_rejected

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """One mirror run.

    Args:
        source: What is wanted.
        ledger: What Talon.One acknowledged.
        guard: Limits of what may change.
        sender: Opened when the guard has passed.
        kind: Members or attributes.
        create: Called with each audience that will change, after the guard and before the changes are sent; creates it
            where it does not exist, and says whether it did, or may have. None where nothing is to be created.
        in_flight: Requests in flight at the most.
        max_rejected: Rejected records that are put up with; None for any number.
    """

    source: Source
    ledger: Ledger
    guard: Guard
    sender: Callable[[], AbstractAsyncContextManager[Metered]]
    kind: Kind = field(default_factory=Memberships)
    create: Callable[[str], bool] | None = None
    in_flight: int = 64
    max_rejected: int | None = 0

    @rare_collections()
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
        for reason, count in sorted(report.rejected.items()):
            log.warning("%s: %s %s", reason, f"{count:,}", self.kind.noun)
        fail_if_rejected(report, self.max_rejected)
        return report

    @rare_collections()
    def hand_over(self, owner: str) -> SyncReport:
        """Plan, guard and record, for other processes to push; in the report, what they have to send is unsent.

        Args:
            owner: Who runs this; those that push have the same owner.

        Returns:
            The counts of the plan. When nothing is to be sent, ``unsent`` is 0 and no plan was put in force.

        Raises:
            GuardError: The plan is beyond the limits; nothing was recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written.
        """
        began = time.monotonic()
        with self.ledger.locked(owner):
            planned, passed = self._prepare(Earlier())
            if passed and planned.counts.changes:
                self.ledger.enforce(planned.staged, names=planned.comparison.names, handed_over=True)
                report = report_of(planned.counts)
            else:
                report = self._leave(planned, passed=passed)
            self.ledger.flush()
            return replace(
                report,
                seconds=time.monotonic() - began,
                dead_letters=self.ledger.dead_letters,
                ledger_version=self.ledger.version,
            )

    @rare_collections()
    def dry_run(self, requests_per_second: float) -> SyncReport:
        """Plan and guard, and send and record nothing.

        Args:
            requests_per_second: For the estimate of the time that the plan would take.
        """
        began = time.monotonic()
        self.ledger.load()
        counts = plan(
            self.source,
            self.kind,
            self.ledger,
            lambda planner: sum(1 for _ in planner(self.ledger.known(), self.ledger.uncertain())),
        ).counts
        try:
            verdict = {"send": "would be sent", "skip": "would be skipped"}[self.guard.check(counts)]
        except GuardError as error:
            verdict = f"would be refused: {error}"
        requests = math.ceil(counts.changes / self.kind.in_request)
        log.info("Dry run, nothing was sent or recorded. The plan %s.", verdict)
        log.info(
            "It takes %s requests: %.1f s at %g a second.",
            f"{requests:,}",
            requests / requests_per_second,
            requests_per_second,
        )
        return replace(
            report_of(counts),
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
        if created := self._created(counts):
            self._discard_lost(staged, created)
            return Earlier()
        refused: set[Member] = set()

        def note(member: Member) -> bool:
            # One at a time costs requests, so there are never many of them.
            refused.add(member)
            return True

        def earlier(tally: Tally) -> Earlier:
            return Earlier(left=counts.changes, pushed=tally, refused=refused)

        self._enforce(staged, cursor, ())
        tally = self._push(
            self.ledger.batches(), counts, note, lambda tally: earlier(tally).joined(report_of(PlanCounts()))
        )
        log.info(
            "That plan is finished: %s sent, %s refused. Now the source is planned anew.",
            f"{tally.sent:,}",
            f"{len(refused):,}",
        )
        return earlier(tally)

    def _sync(self, cursor: Cursor | None, earlier: Earlier) -> SyncReport:
        """Plan the source as it is now, and send what the guard lets pass."""
        planned, passed = self._prepare(earlier)
        counts = planned.counts
        if passed and counts.changes:
            self._enforce(planned.staged, cursor, planned.comparison.names)

            def report(tally: Tally) -> SyncReport:
                return earlier.joined(report_of(counts, tally), planned.again)

            batches = planned.comparison.batches(self.ledger)
            return report(self._push(batches, counts, lambda member: member not in earlier.refused, report))
        return earlier.joined(self._leave(planned, passed=passed))

    def _prepare(self, earlier: Earlier) -> tuple[Planned[StagedPlan], bool]:
        """Plan, ask the guard, create the audiences that the plan needs, and write the letters of what it leaves out."""
        planned, passed = self._plan(earlier)
        created = self._created(planned.counts) if passed else ()
        if lost := [each for each in created if planned.counts.known[each]]:
            # Where the audience had to be created, its members were deleted with the one before.
            self._discard_lost(planned.staged, lost)
            planned, passed = self._plan(earlier)
        self._bury(planned.letters)
        return planned, passed

    def _leave(self, planned: Planned[StagedPlan], *, passed: bool) -> SyncReport:
        """End without sending."""
        self.ledger.discard(planned.staged)
        self.ledger.flush()
        if not passed:
            log.warning("The source has no rows, and on_empty is 'skip': its plan was not sent.")
        return report_of(planned.counts)

    def _plan(self, earlier: Earlier) -> tuple[Planned[StagedPlan], bool]:
        """Plan, and ask the guard whether to send that."""
        planned = plan(
            self.source,
            self.kind,
            self.ledger,
            self.ledger.stage,
            refused=earlier.refused,
        )
        try:
            return planned, self.guard.check(planned.counts) == "send"
        except GuardError as error:
            self.ledger.discard(planned.staged)
            if earlier.pushed.sent:
                raise GuardError(
                    f"{error} That is about the plan of the source as it is now; {earlier.pushed.sent:,} changes that an "
                    "earlier try had left of its plan were sent before."
                ) from error
            raise

    def _created(self, counts: PlanCounts) -> Sequence[str]:
        """Create the audiences that do not exist; return those that were created, or may have been."""
        if not self.create or not counts.changes:
            return ()
        trusted = set(counts.audiences).difference(self.ledger.suspected)
        # If this dies after it has created an audience, the next run must not take its members for granted.
        self.ledger.suspect(counts.audiences)
        created = []
        try:
            for audience in counts.audiences:
                created.append(audience)
                if not self.create(audience):
                    created.pop()
        except RequestError as error:
            if not (error.repeated or error.is_unclear):
                created.pop()
            raise
        finally:
            self.ledger.trust(trusted.difference(created))
        return created

    def _discard_lost(self, staged: StagedPlan, lost: Collection[str]) -> None:
        log.warning(
            "Talon.One may have lost %d audience(s) that the ledger has members of; all are sent again.",
            len(lost),
        )
        self.ledger.discard(staged)

    def _enforce(self, staged: StagedPlan, cursor: Cursor | None, names: Iterable[str]) -> None:
        self.ledger.enforce(staged, names=names)
        if cursor:
            cursor.set(self.ledger.version)

    def _bury(self, letters: Letters) -> None:
        for number, letter in enumerate(letters, start=1):
            self.ledger.reject(letter)
            if number % MAX_CHANGES == 0:
                self.ledger.flush()

    def _push(
        self,
        batches: Generator[Travelling, None, None],
        counts: PlanCounts,
        needs_letter: Callable[[Member], bool],
        report: Callable[[Tally], SyncReport],
    ) -> Tally:
        """Send the plan in force; see ``push_plan``."""
        return push_plan(
            self.ledger,
            batches,
            counts.changes,
            kind=self.kind,
            sender=self.sender,
            in_flight=self.in_flight,
            max_rejected=self.max_rejected,
            needs_letter=needs_letter,
            report=report,
        )
