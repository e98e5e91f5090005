"""Make Talon.One equal to a source: read, plan, guard, push, acknowledge, report."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Folded, Member, OutOfOrderError, within
from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import MAX_CHANGES, OnOlderRun, RetryRejected
from airflow_provider_talon_cdp.exceptions import (
    GuardError,
    InvalidInputError,
    LedgerError,
    OlderRunError,
    RequestError,
)
from airflow_provider_talon_cdp.ledger.ledger import Ledger, Outcome, Planner, RunFacts
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.loop import syncing
from airflow_provider_talon_cdp.sync.members import MemberPlan, Members
from airflow_provider_talon_cdp.sync.profiles import CHANGED, PROFILES, ProfilePlan, Profiles
from airflow_provider_talon_cdp.sync.push import (
    Limits,
    Push,
    check_suspicious,
    closing_generator,
    count_suspicious,
    fail_if_rejected,
    now,
)
from airflow_provider_talon_cdp.sync.report import Report

log = logging.getLogger(__name__)

Source: TypeAlias = Callable[[], Iterable[Any]]
"""Reads the wanted records from the start. It is called a second time if they are not sorted by bytes."""

# Most plans of one run, which plans again if an audience has lost its members.
_MOST_PLANS = 3
# Roughly how many members refused in the last run are kept in memory, to be sent in separate requests.
_MOST_REFUSED_BEFORE = 100_000
_REFUSED_BEFORE = "refused in an earlier run and not sent again, as retry_rejected is 'never'"
REFUSED_IN_EARLIER_TRY = "refused in an earlier try of a task that pushed"


class TaskCursor:
    """The version of the plan that a task is sending, in Airflow's task state store, for the next try.

    A try with other inputs does not get it: after a wrong query is fixed and the task is cleared, the old
    plan must not be resumed.

    Args:
        store: ``context["task_state_store"]`` of Airflow 3.3 and later.
        inputs: What the plan depends on, apart from the data; compared by its ``repr``.
    """

    _KEY = "talon_cdp_plan"

    def __init__(self, store: Any, inputs: object) -> None:
        self._store = store
        self._fingerprint = hashlib.sha256(repr(inputs).encode(errors="backslashreplace")).hexdigest()

    def get(self) -> int:
        """Return the version, or 0."""
        stored = self._call(self._store.get, self._KEY)
        return int(stored["version"]) if stored and stored["fingerprint"] == self._fingerprint else 0

    def set(self, version: int) -> None:
        """Store the version; 0 deletes it, so that a task that is cleared after its success plans anew."""
        if version:
            self._call(self._store.set, self._KEY, {"version": version, "fingerprint": self._fingerprint})
        else:
            self._call(self._store.delete, self._KEY)

    @staticmethod
    def _call(method: Callable[..., Any], *arguments: object) -> Any:
        """Return a method's result, or None if it fails: a retry then plans anew."""
        try:
            return method(*arguments)
        except Exception as error:  # noqa: BLE001 - of Airflow or a backend, and the sync does not need it
            log.warning(
                "Airflow's task state store failed. If this try fails too, the next one plans anew:\n%s",
                error,
            )
            return None


@dataclass(frozen=True)
class Planned:
    """All changes that make Talon.One equal to the source as it is now.

    Args:
        result: What ``consume`` returned, e.g. the ledger's draft; see ``Mirror._plan``.
        counts: Counts of the changes, and of the records that were read.
        letters: Dead letters of records that cannot be sent, as JSON.
        comparison: The comparison, which yields the chunks to send.
        suspicious: Counts of IDs that look wrong.
        refused_before: Members of which Talon.One refused a change in the last run.
    """

    result: Any
    counts: Counts
    letters: Spool
    comparison: MemberPlan | ProfilePlan
    suspicious: SuspiciousIds
    refused_before: frozenset[Member] = frozenset()

    @property
    def null_texts(self) -> int:
        """Number of records with the text of a null as their ID."""
        return self.suspicious.counts.get("null_text", 0)


@dataclass(frozen=True)
class ComparedRanges:
    """Ranges of profile IDs that other processes have compared; see ``Mirror.compare_range``.

    Args:
        changes: Reads the changes of all ranges.
        facts: Yields the rejections of all ranges, and calls its argument with the facts of each range.
    """

    changes: Callable[[], Iterable[Any]]
    facts: Callable[[Callable[[Mapping[str, Any]], object]], Iterable[Any]]


class _LedgerChangedError(Exception):
    """The ledger has changed since ranges were compared with it."""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """One mirror run.

    Args:
        source: Reads the wanted records.
        ledger: What Talon.One acknowledged.
        guard: Limits of what may change.
        sender: Opens the sender, after the guard has let the plan pass.
        kind: Members or attributes.
        audiences: Creates audiences and checks whether they are the same as before; None for attributes.
        facts: What the ledger keeps about this run.
        on_older_run: What to do if the ledger holds newer data than this run has.
        retry_rejected: Whether records that Talon.One refused in the last run are sent again.
        limits: How to push.
        with_approval: Whether the plan waits for approval. A plan beyond the guard's limits becomes current
            too, and the report has the guard's text. The ledger's ``data_until`` changes only on approval.
        compared: Ranges of the source that other processes have compared. They are used only if the ledger
            has not changed since.
    """

    source: Source
    ledger: Ledger
    guard: Guard
    sender: Callable[[], AbstractAsyncContextManager[Any]]
    kind: Members | Profiles = field(default_factory=Members)
    audiences: Audiences | None = None
    facts: RunFacts = field(default_factory=RunFacts)
    on_older_run: OnOlderRun = "fail"
    retry_rejected: RetryRejected = "always"
    limits: Limits = field(default_factory=Limits)
    with_approval: bool = False
    compared: ComparedRanges | None = None

    def __post_init__(self) -> None:
        if isinstance(self.kind, Members):
            managed = self.kind.scope.managed
            self.ledger.managed = None if managed is None else frozenset(managed)

    @syncing()
    def run(self, owner: str, cursor: TaskCursor | None = None, report: Report | None = None) -> Report:
        """Plan, guard, push and record.

        Args:
            owner: Who runs this; a retry has the same owner.
            cursor: Tells a retry whether the current plan is the one that the last try was sending. The
                guard has let that plan pass, so the rest of it is sent first. Then the source is planned, as
                without a cursor.
            report: Where to count, so that the caller has the counts if the run fails.

        Raises:
            GuardError: The plan is beyond the limits; nothing of it was sent or recorded.
            OlderRunError: The ledger holds newer data; nothing was sent or recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written; nothing was sent, or the push
                stopped.
            RejectedRecordsError: More records than ``max_rejected`` were rejected; all others were sent and
                recorded.
            RequestError: The push stopped early; what was acknowledged is recorded.
        """
        report = report or Report()
        if cursor:
            self.ledger.at_least = max(self.ledger.at_least, cursor.get())
        with self.ledger.held(owner), self._reported(report):
            if not self._begins(owner, report):
                return report
            refused: set[Member] = set()
            # A plan is not resumed if it may be for other audiences, or if an audience was lost.
            sends_again = self.ledger.suspected or self.ledger.resends
            may_resume = not (sends_again or self.ledger.environment_may_differ(self.facts))
            if cursor and may_resume and 0 < self.ledger.version == cursor.get():
                refused = self._resume(report, cursor)
            self._plan_and_push(report, cursor, refused)
            if cursor:
                cursor.set(0)
            self.ledger.note_reported()
        log.info("Done:\n%s", report)
        fail_if_rejected(report, self.limits.max_rejected)
        return report

    @syncing()
    def hand_over(self, owner: str, report: Report | None = None) -> Report:
        """Plan, guard and record, for other processes to push; the report has the changes as unsent.

        Args:
            owner: Who runs this; the processes that push have the same owner.
            report: Where to count, so that the caller has the counts if the run fails.

        Returns:
            The counts of the plan. The state is ``planned`` if there is one to push.

        Raises:
            GuardError: The plan is beyond the limits; nothing was recorded.
            OlderRunError: The ledger holds newer data; nothing was recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written.
        """
        report = report or Report()
        with self.ledger.held(owner), self._reported(report):
            if not self._begins(owner, report):
                return report
            plan = self._prepare(report)
            if plan and plan.counts.changes:
                self._make_current(plan, handed_over=True)
                report += plan.counts
                report.unsent = plan.counts.changes
                report.state = "planned"
            elif report.verdict is None:
                # No task commits this plan. A report with a verdict is not checked, so it does not count.
                self.ledger.note_reported()
        return report

    def compare_range(
        self, low: str | None, high: str | None, write: Callable[[Iterable[Any], Callable[[], Any]], str]
    ) -> tuple[str, str] | None:
        """Compare a range of profile IDs with the ledger, for another process that plans.

        Args:
            low: The first ID of the range; None for no bound.
            high: The first ID of the next range; None for no bound.
            write: Writes records, and after them the result of a function; returns the file's name.

        Returns:
            The file of the changes, and the file of rejections and facts. None if the plan has to be compared
            as a whole: changes run rules or are left out, or the source is not sorted by bytes.
        """
        runs_rules = not isinstance(self.kind, Members) or self.kind.rules != "none"
        if runs_rules or self.retry_rejected == "never":
            return None
        self.ledger.load()
        state, audiences = self._state_for_comparison(), set[str]()

        def records_in_range() -> Iterator[Any]:
            for record in self.source():
                ids = record.ids if isinstance(record, Chunk) else ()
                if ids and ((low is not None and min(ids) < low) or (high is not None and max(ids) >= high)):
                    raise OutOfOrderError
                yield record

        def known_in_range(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
            for chunk in within(chunks, low, high):
                audiences.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
                yield chunk

        def consume(planner: Planner) -> str:
            known = self.ledger.known()
            known = Folded(known_in_range(known.snapshot), list(map(known_in_range, known.plans)))
            uncertain = within(self.ledger.uncertain(), low, high)
            return write(planner(known, uncertain, lambda _: None), dict)

        try:
            plan = self._plan_once(consume, records_in_range)
        except OutOfOrderError:
            return None
        facts = {
            "state": state,
            "held": sorted(audiences),
            "counts": vars(plan.counts),
            "suspicious": plan.suspicious.sums,
            "witnesses": plan.comparison.witnesses,
        }
        letters = map(json.loads, plan.letters)
        rejections = (Rejection(letter["reason"], letter["profile_id"]) for letter in letters)
        return plan.result, write(rejections, lambda: facts)

    def _state_for_comparison(self) -> str:
        """Return a text that differs if a comparison of the same source would differ."""
        return f"{self.ledger.state()} {self.kind!r}"

    @syncing()
    def dry_run(self, requests_per_second: float) -> Report:
        """Plan and guard, and send and record nothing.

        Args:
            requests_per_second: The connection's rate, to estimate the time of the push.
        """
        report, accepts_older = Report(), self.ledger.accepts_older
        # The verdict says if the run would refuse an older ledger.
        self.ledger.accepts_older = True
        self.ledger.load()
        self.ledger.accepts_older = accepts_older
        # A run would suspect the attributes; see ``_check_key``.
        sends_all = isinstance(self.kind, Profiles) and self.kind.sends_all
        suspects_all = sends_all and self.ledger.environment_may_differ(self.facts)

        def consume(planner: Planner) -> None:
            known = self.ledger.known(suspects_all=suspects_all)
            deque(planner(known, self.ledger.uncertain(), lambda _: None), 0)

        plan = self._plan(consume)
        report.suspicious = plan.suspicious.counts
        check_suspicious(plan.suspicious, self.limits.suspicious_ids)
        counts = plan.counts
        try:
            self.ledger.refuse_older()
            self._check_key(suspects=False)
            verdict = {"send": "would be sent", "skip": "would be skipped"}[self._guarded(plan)]
            if self._skips_older_data(report):
                verdict = f"would be {report.verdict}"
            elif verdict == "would be sent" and self.audiences and self.audiences.environment_may_differ:
                verdict += (
                    "; known members are sent again, too, unless Talon.One confirms that the audience is the "
                    "same, as the API key or the platform name has changed"
                )
        except (GuardError, LedgerError, OlderRunError) as error:
            verdict = f"would be refused: {error}"
        changes, calls = counts.rule_changes, counts.rule_calls
        requests = calls + math.ceil((counts.changes - changes) / self.kind.in_request)
        if calls:
            verdict += (
                f"; {changes:,} changes run rules, in {calls:,} requests, one for each profile: "
                f"{calls / requests_per_second:,.1f} s at {requests_per_second:g} a second"
            )
        log.info("Dry run, nothing was sent or recorded. The plan %s", verdict)
        seconds = requests / requests_per_second
        log.info(
            "It takes %s requests: %.1f s at %g a second.", f"{requests:,}", seconds, requests_per_second
        )
        report += counts
        report.requests, report.unsent, report.verdict = requests, counts.changes, verdict
        report.seconds = time.monotonic() - report.began
        report.ledger_version = self.ledger.version
        return report

    def _begins(self, owner: str, report: Report) -> bool:
        """Look at the ledger before the source is read; return false if the run ends here."""
        if self._skips_older_data(report):
            return False
        self._check_key()
        self._warn_of_other_writers(owner)
        self._count_abandoned(report)
        return True

    def _skips_older_data(self, report: Report) -> bool:
        """Return whether this run ends here, as its data are older than the ledger's."""
        newest, ours = self.ledger.facts.data_until, self.facts.data_until
        if self.on_older_run == "allow" or not newest or not ours or ours >= newest:
            return False
        text = (
            f"The ledger holds data until {newest},\nand this run has older data, until {ours}.\n"
            "It would undo what the newer run did. Nothing was sent."
        )
        if self.on_older_run == "fail":
            raise OlderRunError(
                f"{text}\nIf that is what you want, as in a backfill, pass on_older_run='allow';\n"
                "'skip' ends such runs green."
            )
        log.warning("%s", text)
        report.verdict = f"skipped: {text}"
        return True

    def _check_key(self, *, suspects: bool = True) -> None:
        """Warn if the API key has changed, as the new one may be of another environment.

        Args:
            suspects: Whether to note that the attributes in the ledger are not those of Talon.One.
        """
        if self.ledger.facts.has_key_of(self.facts):
            return
        text = (
            "The API key or the platform name on the connection has changed since the last run.\n"
            "If the new key is of another environment (sandbox or live), this ledger says nothing about it:\n"
            "set Environment on the connection, so that each environment has a ledger of its own.\n"
            "With another platform name, the same IDs may mean other audiences. Members are sent again\n"
            "unless Talon.One confirms that the audience is the same."
        )
        # Uncertain attributes are sent again under any key, so a ledger of only these can be used.
        if (
            isinstance(self.kind, Profiles)
            and not self.ledger.identity.environment
            and self.ledger.has_acknowledged_attributes
        ):
            if not self.kind.sends_all:
                without_rules = ", and with\nrun_rule_engine=False, else rules run for all"
                raise LedgerError(
                    f"{text}\nNothing was sent: Talon.One does not tell which attributes a profile has.\n"
                    "If the environment is the same, send all once with send='all'"
                    f"{without_rules if self.kind.runs_rules else ''}."
                )
            # Until all is sent, the ledger has only what the other key's environment acknowledged.
            if suspects:
                self.ledger.suspect([PROFILES])
        log.warning("%s", text)
        if self.audiences is not None:
            self.audiences.key_has_changed = True
            self.audiences.environment_may_differ = self.ledger.environment_may_differ(self.facts)

    def _warn_of_other_writers(self, owner: str) -> None:
        """Log which other tasks change the same audiences or attributes, and their ledgers."""
        # The command that adopts members or repairs a ledger is no task.
        last = self.ledger.owner if "/" in self.ledger.owner else ""
        writers = {_task_of(writer) for writer in (last, *self.ledger.other_writers)}
        if others := sorted(writers - {_task_of(owner), ""}):
            what = "attributes" if isinstance(self.kind, Profiles) else "audiences"
            log.warning(
                "Another task changed the same %s since this one did:\n%s\n"
                "The tasks undo each other's changes. Let only one task sync each audience or attribute.\n"
                "The other task's changes are compared with this query now.",
                what,
                ", ".join(others),
            )
        if not self.ledger.version and (neighbours := self.ledger.neighbours()):
            log.warning(
                "A new ledger begins beside another one of the same audience:\n%s", "\n".join(neighbours)
            )

    def _resume(self, report: Report, cursor: TaskCursor) -> set[Member]:
        """Send the rest of an earlier try's plan, without reading the source; return the refused members."""
        counts = Counts()
        refused_before = self._refused_before()

        def plan_rest(_: object, __: object, carry: Callable[[Chunk], None]) -> Iterator[Chunk]:
            for chunk in self.ledger.refused():
                carry(chunk)
            for chunk in self.ledger.unacknowledged(withheld=False):
                chunk.tally(counts.additions, counts.removals)
                yield chunk

        # Notes of other writers are left for the next plan, which is compared with the source.
        draft = self.ledger.draft(plan_rest)
        draft = replace(draft, manifest=replace(draft.manifest, spent=()))
        log.info("Resuming the plan of an earlier try: %s changes are left.", f"{counts.changes:,}")
        # An audience may have been deleted since the ledger was read; this plan would not fill it.
        if not counts.changes or self.ledger.suspected or self.ledger.resends:
            self.ledger.discard(draft)
            return set()
        # The audiences are checked for the next plan, against the facts of the plan that is resumed.
        old = self.ledger.facts
        facts = replace(self.facts, audiences=old.audiences, filling=old.filling, null_texts=old.null_texts)
        self.ledger.make_current(draft, facts=facts, names=self.ledger.names)
        cursor.set(self.ledger.version)
        share = self.ledger.share()
        report.resumed += counts.changes
        limits = replace(self.limits, refused_before=refused_before)
        refused = self._push(share, share.batches(), report, Counts(), limits)
        report.plan_anew()
        log.info("That plan is finished. Now the source is planned anew.")
        return refused

    def _plan_and_push(self, report: Report, cursor: TaskCursor | None, refused: set[Member]) -> None:
        """Plan the source as it is now, and send the plan if the guard lets it pass."""
        for _ in range(_MOST_PLANS):
            plan = self._prepare(report, refused)
            if plan is None or not plan.counts.changes:
                return
            self._make_current(plan)
            if cursor:
                cursor.set(self.ledger.version)
            share = self.ledger.share()
            limits = replace(
                self.limits, refused_before=plan.refused_before, refused_in_run=frozenset(refused)
            )
            refused |= self._push(share, plan.comparison.chunks(share), report, plan.counts, limits)
            try:
                lost = self._lost_audiences(plan, report, after=True)
                # So that a deletion that another task noted meanwhile is not left to the next run.
                lost_meanwhile = self.audiences and self.ledger.suspected_by_now()
            except BaseException:
                report += plan.counts
                raise
            if not lost and not lost_meanwhile:
                report += plan.counts
                if self.ledger.facts.filling:
                    self.ledger.remember(self._facts())
                return
            # Audiences were made again during the push, so the next plan adds their members again.
            report.resumed += plan.counts.changes
            report.plan_anew()
        raise LedgerError(
            "An audience was deleted and made again while this run was sending to it, several times.\n"
            "What Talon.One acknowledged is recorded. Find out who deletes the audience, and run again."
        )

    def _guarded(self, plan: Planned) -> str:
        """Return the guard's verdict, or raise ``GuardError``."""
        # As many as in the last run have cost no member its row since.
        more = max(0, plan.null_texts - self.ledger.facts.null_texts)
        null_texts = 0 if self.limits.suspicious_ids == "ignore" else more
        return self.guard.check(plan.counts, self.limits.max_rejected, null_texts)

    def _needs_approval(self, plan: Planned, report: Report) -> bool:
        """Return whether the guard refuses a plan that a person may allow; the report then has its text."""
        report.verdict = report.allow = None
        if self.with_approval and plan.counts.changes:
            try:
                self._guarded(plan)
            except GuardError as error:
                report.verdict, report.allow = error.allow and str(error), error.allow
        return report.allow is not None

    def _prepare(self, report: Report, refused: Collection[Member] = ()) -> Planned | None:
        """Plan, check the guard, and create or check the audiences.

        Returns:
            A plan that may be sent; if it has changes, the report does not have its counts yet. None if the
            guard skips the plan.
        """
        for _ in range(_MOST_PLANS):
            plan = self._plan(self.ledger.draft, refused)
            report.suspicious = plan.suspicious.counts
            try:
                check_suspicious(plan.suspicious, self.limits.suspicious_ids)
                passed = self._needs_approval(plan, report) or self._guarded(plan) == "send"
            except (InvalidInputError, GuardError) as error:
                self.ledger.discard(plan.result)
                _count_unsent(report, plan.counts)
                if report.sent and isinstance(error, GuardError):
                    raise GuardError(
                        f"{error}\nThis is about the plan of the source as it is now.\n"
                        f"Before it, {report.sent:,} changes of an earlier try's plan were sent.",
                        error.allow,
                    ) from error
                raise
            if not passed:
                self.ledger.discard(plan.result)
                self._write_letters(plan.letters)
                _count_unsent(report, plan.counts)
                report.verdict = (
                    "skipped: The source has no rows, and on_empty is 'skip': its plan was not sent."
                )
                log.warning("%s", report.verdict)
                return None
            try:
                lost = self._lost_audiences(plan, report)
            except BaseException:
                _count_unsent(report, plan.counts)
                raise
            if lost:
                if self.ledger.resends.issuperset(lost):
                    text = (
                        "%d audience(s) may be those of another environment or platform. All members are "
                        "sent again."
                    )
                else:
                    text = (
                        "%d audience(s) of the ledger were deleted or made again in Talon.One. All members "
                        "are sent again."
                    )
                log.warning(text, len(lost))
                self.ledger.discard(plan.result)
                continue
            is_older = self.ledger.version < self.ledger.at_least
            if is_older or self.ledger.environment_may_differ(self.facts):
                self.ledger.note_resend_of_unmanaged()
            self._write_letters(plan.letters)
            if not plan.counts.changes:
                if self.ledger.must_be_replaced:
                    # The new version keeps what is known of lost plans, and an older plan is pushed no more.
                    self._make_current(plan)
                else:
                    # Its folder may have been copied, or written by a version that did not register it.
                    self.ledger.registry.register(plan.result.audiences)
                    self.ledger.discard(plan.result)
                self.ledger.remember(self._facts())
                report += plan.counts
            return plan
        raise LedgerError(
            "An audience was deleted and made again while this run was planning for it, several times.\n"
            "Nothing of the last plan was sent. Find out who deletes the audience, and run again."
        )

    def _plan(self, consume: Callable[[Planner], Any], refused: Collection[Member] = ()) -> Planned:
        """Compare the source with the ledger, without sending anything.

        Args:
            consume: Called with the planner; its result is the plan's. If the source is not sorted, it is
                called a second time and must start from the beginning.
            refused: Members that were refused, and counted, in this run.
        """
        refused_before = self._refused_before()
        left_out = refused, refused_before if self.retry_rejected == "never" else ()
        try:
            plan = self._plan_of_ranges(self.compared, consume) if self.compared and not refused else None
            plan = plan or self._plan_once(consume, self.source, left_out)
        except OutOfOrderError:
            log.info("The source is not sorted by bytes: it is read again and sorted on this worker's disk.")
            plan = self._plan_once(consume, self.source, left_out, self.kind.sort)
        plan = replace(plan, refused_before=refused_before)
        log.info("Plan: %s\nLedger: %s", self.kind.describe(plan.counts), self.ledger.folder)
        return plan

    def _plan_of_ranges(self, compared: ComparedRanges, consume: Callable[[Planner], Any]) -> Planned | None:
        """Join the comparisons of ranges; return None if the ledger has changed since."""
        counts, states, audiences = Counts(), set[str](), set[str]()
        plan = Planned(None, counts, Spool(), self.kind.compare(self.ledger), SuspiciousIds())

        def join(facts: Mapping[str, Any]) -> None:
            nonlocal counts
            counts += Counts.of(facts["counts"])
            plan.suspicious.join(*facts["suspicious"])
            for audience, profile_id in facts["witnesses"].items():
                plan.comparison.witnesses.setdefault(audience, profile_id)
            states.add(facts["state"])
            audiences.update(facts["held"])

        def planner(*_: object) -> Iterable[Chunk]:
            # Checked here and not earlier, as the draft covers other writers' notes only from now on.
            if states != {self._state_for_comparison()}:
                raise _LedgerChangedError
            # The ledger registers the audiences of its members while they are read. They are not read here,
            # so an empty chunk of each audience stands for them.
            return chain((Chunk([], audience) for audience in sorted(audiences)), compared.changes())

        for rejection in compared.facts(join):
            _write_letter(rejection, plan.letters)
        try:
            return replace(plan, result=consume(planner))
        except _LedgerChangedError:
            log.info("The ledger has changed since the ranges were compared, so all is compared again.")
            plan.letters.close()
            return None

    def _plan_once(
        self,
        consume: Callable[[Planner], Any],
        source: Source,
        left_out: tuple[Collection[Member], Collection[Member]] = ((), ()),
        sort: Callable[[Iterable[Any]], Iterable[Any]] = lambda records: records,
    ) -> Planned:
        counts = Counts()
        letters = Spool()
        comparison = self.kind.compare(self.ledger)
        suspicious = SuspiciousIds()

        with ExitStack() as stack:
            records = stack.enter_context(closing_generator(source()))

            def planner(
                known: Iterable[Chunk], uncertain: Iterable[Chunk], carry: Callable[[Chunk], None]
            ) -> Iterable[Chunk]:
                in_order = stack.enter_context(closing_generator(sort(count_suspicious(records, suspicious))))
                on_rejected = partial(_write_letter, letters=letters)
                changes = comparison.changes(in_order, known, uncertain, counts, on_rejected)
                changes = self._without_refused(changes, counts, carry, *left_out)
                return comparison.kept(_counting_rules(changes, counts))

            return Planned(consume(planner), counts, letters, comparison, suspicious)

    def _without_refused(
        self,
        changes: Iterable[Chunk],
        counts: Counts,
        carry: Callable[[Chunk], None],
        refused: Collection[Member],
        refused_before: Collection[Member],
    ) -> Iterator[Chunk]:
        """Leave out additions that were refused before, but not uncertain ones, which the ledger must keep.

        Args:
            changes: The plan's changes.
            counts: The plan's counts.
            carry: Called with the changes that are left out, so that later runs know of them.
            refused: Members that were refused, and counted, in this run.
            refused_before: Members that were refused in earlier runs and are not sent again.
        """
        for chunk in changes:
            members = chunk.members if refused or refused_before else ()
            bad = [at for at, member in enumerate(members) if member in refused or member in refused_before]
            bad = [
                at for at, verb in zip(bad, chunk.at(bad).each_verb, strict=True) if verb in ("add", "add!")
            ]
            if not bad:
                yield chunk
                continue
            left_out = chunk.at(bad)
            carry(left_out)
            self.kind.uncount(left_out, counts)
            in_run = sum(member in refused for member in left_out.members)
            counts.duplicate += in_run
            counts.rejected += Counter({_REFUSED_BEFORE: len(bad) - in_run})
            if rest := chunk.without(bad):
                yield rest

    def _make_current(self, plan: Planned, *, handed_over: bool = False) -> None:
        names = plan.comparison.names
        facts = self._facts()
        facts = replace(facts, filling=[*facts.filling, *plan.comparison.filling(plan.counts)])
        if self.with_approval and plan.counts.changes:
            facts = replace(facts, data_until=self.ledger.facts.data_until, awaits_approval=True)
        else:
            facts = replace(facts, null_texts=plan.null_texts)
        if handed_over:
            self.ledger.note_refused_before(plan.result, plan.refused_before)
        self.ledger.make_current(plan.result, facts=facts, names=names, handed_over=handed_over)

    def _facts(self) -> RunFacts:
        """Return the facts of this run, and of audiences that it may not change those of earlier runs."""
        before = self.ledger.facts
        facts = replace(
            self.facts, filling=self.ledger.unmanaged(before.filling), null_texts=before.null_texts
        )
        return facts if self.audiences is None else replace(facts, audiences=self.audiences.known)

    def _lost_audiences(self, plan: Planned, report: Report, *, after: bool = False) -> Collection[str]:
        """Return the audiences whose members Talon.One has lost, by its responses."""
        if self.audiences is None:
            return ()
        lost = self.audiences.check(
            self.ledger, plan.counts, plan.comparison.witnesses, self.sender, report, after=after
        )
        if after:
            self.ledger.remember(self._facts())
        return lost

    def _count_abandoned(self, report: Report) -> None:
        """Count changes without a clear answer of earlier runs that no run that finished has reported."""
        if unclear_before := self.ledger.withhold_unclear():
            log.warning(
                "%s changes that run rules have an unknown outcome: an earlier run was stopped or killed.\n"
                "Their rules do not run again, and they have dead letters.",
                f"{unclear_before:,}",
            )
            report.resumed += unclear_before
            report.unclear += unclear_before

    def _refused_before(self) -> frozenset[Member]:
        refused: set[Member] = set()
        for chunk in self.ledger.refused():
            refused.update(chunk.members)
            if len(refused) > _MOST_REFUSED_BEFORE:
                break
        return frozenset(refused)

    def _push(
        self,
        share: Share,
        chunks: Generator[Chunk, None, None],
        report: Report,
        counts: Counts,
        limits: Limits,
    ) -> set[Member]:
        """Send the current plan, and return the refused members; if it ends early, log the counts."""
        push = Push(self.kind, share, report, limits)
        try:
            push.run(chunks, self.sender)
        except BaseException as error:
            report += counts
            log.warning(
                "Stopped early:\n%s\nThe next run may send some of it again, which is harmless.", report
            )
            if isinstance(error, RequestError) and not error.retryable:
                # Airflow does not retry this run, so its report is not replaced by that of a retry.
                with suppress(LedgerError):
                    self.ledger.note_reported()
            raise
        return push.refused

    def _write_letters(self, letters: Spool) -> None:
        """Write the dead letters of records that cannot be sent."""
        for number, letter in enumerate(letters, start=1):
            self.ledger.letters.add(json.loads(letter))
            if number % MAX_CHANGES == 0:
                self.ledger.flush()
        self.ledger.flush()
        letters.close()

    @contextmanager
    def _reported(self, report: Report) -> Iterator[None]:
        """Set the result in a report, also if the run fails."""
        try:
            yield
            if report.state != "planned":
                # Before a plan that is skipped, the rest of an earlier try's plan may have been sent.
                report.state = "done" if report.verdict is None or report.sent else "refused"
        except (GuardError, OlderRunError) as error:
            report.state, report.verdict, report.allow = "refused", str(error), error.allow
            raise
        finally:
            report.seconds = time.monotonic() - report.began
            report.dead_letters = self.ledger.letters.place
            report.ledger_version = self.ledger.version


@syncing()
def push_share(
    share: Share,
    chunks: Generator[Chunk, None, None],
    kind: Members | Profiles,
    sender: Callable[[], AbstractAsyncContextManager[Any]],
    limits: Limits,
    report: Report | None = None,
) -> Report:
    """Send the unsent changes of some parts of a plan, as in ``Push.run``; they are counted as resumed."""
    report = report or Report()
    report.resumed += share.changes + share.unclear_before
    report.unclear += share.unclear_before
    try:
        limits = replace(limits, refused_before=share.refused_before)
        Push(kind, share, report, limits).run(chunks, sender)
        report.state = "done"
    finally:
        log.info("%s", report)
    return report


def combined_report(
    planned: Report, outcome: Outcome, pushed: Iterable[Mapping[str, Any]], seconds: float
) -> Report:
    """Combine the report of a plan with the results of the processes that pushed it.

    Args:
        planned: Report of ``Mirror.hand_over``. If it has counts by audience, the result has them too.
        outcome: The ledger's outcome of the plan.
        pushed: Summaries of ``push_share``, one of each task's last try.
        seconds: Seconds from the plan to now.
    """
    report = Report(
        seconds=seconds,
        dead_letters=outcome.dead_letters,
        ledger_version=planned.ledger_version,
        suspicious=planned.suspicious,
        state="done",
    )
    report += planned
    for share in map(Report.of, pushed):
        report.requests += share.requests
        report.retries += share.retries
        report.throttled += share.throttled
        report.rejected.update(share.rejected)
    # The outcome has the skipped and refused changes of all tries, the summaries those of the last ones.
    report.rejected[CHANGED] = outcome.skipped
    refused = report.rejected.total() - planned.rejected.total()
    report.rejected[REFUSED_IN_EARLIER_TRY] = outcome.refused - refused
    report.rejected = +report.rejected
    by_audience = bool(planned.known or planned.additions)
    report.added.update(outcome.added if by_audience else {"": outcome.added.total()})
    report.removed.update(outcome.removed if by_audience else {"": outcome.removed.total()})
    report.unclear += outcome.unclear
    # The ledger has an outcome only of a plan whose parts are complete.
    report.unsent = 0
    return report


def _write_letter(rejection: Rejection, letters: Spool) -> None:
    if rejection.profile_id:
        letter = {"time": now(), "profile_id": rejection.profile_id, "reason": rejection.reason}
        letters.write(json.dumps(letter).encode())


def _count_unsent(report: Report, counts: Counts) -> None:
    """Count a plan that is not sent."""
    report += counts
    report.unsent += counts.changes


def _task_of(owner: str) -> str:
    """Return the DAG and task of an owner, without the run."""
    return ".".join(owner.split("/")[:2]) if owner.count("/") > 1 else owner.partition("/")[0]


def _counting_rules(chunks: Iterable[Chunk], counts: Counts) -> Iterator[Chunk]:
    """Yield sorted changes, and count those that run rules and the calls that they take."""
    last = None
    for chunk in chunks:
        for change in chunk.changes() if chunk.runs_rules else ():
            if change.runs_rules:
                counts.rule_changes += 1
                counts.rule_calls += change.profile_id != last
                last = change.profile_id
        yield chunk
