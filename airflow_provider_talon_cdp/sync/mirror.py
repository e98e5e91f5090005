"""Make Talon.One equal to a source: read, plan, guard, push, acknowledge, report."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, TypeAlias, TypeVar

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Folded, Member, OutOfOrderError, within
from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import MAX_CHANGES
from airflow_provider_talon_cdp.exceptions import GuardError, InvalidInputError, LedgerError, OlderRunError
from airflow_provider_talon_cdp.ledger.ledger import Ledger, Outcome, RunFacts
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.loop import syncing
from airflow_provider_talon_cdp.sync.members import MemberPlan, Members
from airflow_provider_talon_cdp.sync.profiles import CHANGED, PROFILES, ProfilePlan, Profiles
from airflow_provider_talon_cdp.sync.push import (
    Limits,
    Push,
    fail_if_rejected,
    judge_suspicious,
    now,
    watched,
)
from airflow_provider_talon_cdp.sync.report import Report

log = logging.getLogger(__name__)
T = TypeVar("T")

Source: TypeAlias = Callable[[], Iterable[Any]]
"""Reads the wanted records from the start; called again when they turn out not to be sorted by bytes."""

OnOlderRun = Literal["fail", "skip", "allow"]
RetryRejected = Literal["always", "never"]

# How often a run plans anew because an audience turned out to have lost its members.
_ROUNDS = 3
# Refused members that a run remembers, to send them apart from the others.
_REMEMBERED = 100_000
_REFUSED_BEFORE = "refused in an earlier run and not sent again, as retry_rejected is 'never'"
REFUSED_IN_EARLIER_TRY = "refused in an earlier try of a task that pushed"


class TaskCursor:
    """The version of the plan that a task is sending, in Airflow's task state store, for the next try.

    A try whose input differs does not see it: whoever fixes a wrong query and clears the task wants no more
    of the old plan.

    Args:
        store: ``context["task_state_store"]`` of Airflow 3.3 and later.
        told: What the plan depends on, apart from the data: anything with a ``repr`` that says it all.
    """

    _KEY = "talon_cdp_plan"

    def __init__(self, store: Any, told: object) -> None:
        self._store = store
        self._fingerprint = hashlib.sha256(repr(told).encode(errors="backslashreplace")).hexdigest()

    def get(self) -> int:
        """Return the version, or 0."""
        kept = self._store.get(self._KEY)
        return int(kept["version"]) if kept and kept["fingerprint"] == self._fingerprint else 0

    def set(self, version: int) -> None:
        """Keep the version; 0 forgets it, so that a task which is cleared after its success starts anew."""
        if version:
            self._store.set(self._KEY, {"version": version, "fingerprint": self._fingerprint})
        else:
            self._store.delete(self._KEY)


@dataclass(frozen=True)
class Planned:
    """All changes that make Talon.One equal to the source as it is now.

    Args:
        result: What was made of its changes.
        counts: Of its changes, and of the records that were read.
        letters: About records that cannot be sent.
        comparison: What knows how to send it.
        refused_before: Members of which Talon.One refused a change in the run before.
        suspicious: Of the IDs that were read.
    """

    result: Any
    counts: Counts
    letters: Spool
    comparison: MemberPlan | ProfilePlan
    suspicious: SuspiciousIds
    refused_before: frozenset[Member] = frozenset()


@dataclass(frozen=True)
class Compared:
    """Comparisons of ranges of profile IDs that other processes have made; see ``Mirror.compare_range``.

    Args:
        changes: Reads the changes of all ranges.
        facts: Reads what else was written of them: yields rejections, and calls its argument with facts.
    """

    changes: Callable[[], Iterable[Any]]
    facts: Callable[[Callable[[Mapping[str, Any]], object]], Iterable[Any]]


class _OtherStateError(Exception):
    """The ledger is not as it was when others compared with it."""


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """One mirror run.

    Args:
        source: What is wanted.
        ledger: What Talon.One acknowledged.
        guard: Limits of what may change.
        sender: Opens the sender, when the guard has passed.
        kind: Members or attributes.
        audiences: Creates audiences and finds out whether they are still the same; None for attributes.
        facts: What the ledger is to remember of this run.
        on_older_run: What to do where the ledger holds newer data than this run has.
        retry_rejected: Whether records that Talon.One refused in the run before are sent again.
        limits: How to push.
        asks: Whether a person decides about a plan that is beyond the guard's limits: it is put in force, and
            the report has the guard's words.
        compared: What other processes have compared of the source; it counts while the ledger has not
            changed.
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
    asks: bool = False
    compared: Compared | None = None

    @syncing()
    def run(self, owner: str, cursor: TaskCursor | None = None, report: Report | None = None) -> Report:
        """Plan, guard, push and record.

        Args:
            owner: Who runs this; a retry has the owner of the try before it.
            cursor: Tells a retry that the plan in force is the one that the try before it was sending. The
                guard has passed that plan, so what is left of it is sent at once; then all is planned anew,
                as without a cursor.
            report: Where to count, for whoever needs the counts of a run that fails.

        Raises:
            GuardError: The plan is beyond the limits; nothing of it was sent or recorded.
            OlderRunError: The ledger holds newer data; nothing was sent or recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written; nothing was sent, or the push
                stopped.
            RejectedRecordsError: Everything good was sent and recorded, but too much was rejected.
            RequestError: The push stopped early; what was acknowledged is recorded.
        """
        report = report or Report()
        if cursor:
            self.ledger.at_least = max(self.ledger.at_least, cursor.get())
        with self.ledger.held(owner), self._reported(report):
            if self._is_skipped(report):
                return report
            self._check_key()
            self._tell_of_others(owner)
            self._abandon(report)
            refused: set[Member] = set()
            # A plan that was made for another environment is no plan for this one.
            is_ours = self._has_key_of_before or self.ledger.identity.environment
            is_whole = is_ours and not self.ledger.suspected
            if cursor and is_whole and 0 < self.ledger.version == cursor.get():
                refused = self._finish(report, cursor)
            self._sync(report, cursor, refused)
            if cursor:
                cursor.set(0)
        log.info("Done:\n%s", report)
        fail_if_rejected(report, self.limits.max_rejected)
        return report

    @syncing()
    def hand_over(self, owner: str, report: Report | None = None) -> Report:
        """Plan, guard and record, for other processes to push; what they have to send is reported as unsent.

        Args:
            owner: Who runs this; those that push have the same owner.
            report: Where to count, for whoever needs the counts of a run that fails.

        Returns:
            The counts of the plan. When nothing is to be sent, ``unsent`` is 0 or there is a verdict, and no
            plan was put in force.

        Raises:
            GuardError: The plan is beyond the limits; nothing was recorded.
            OlderRunError: The ledger holds newer data; nothing was recorded.
            LedgerError: The ledger is in use, damaged, or cannot be written.
        """
        report = report or Report()
        with self.ledger.held(owner), self._reported(report):
            if self._is_skipped(report):
                return report
            self._check_key()
            self._tell_of_others(owner)
            self._abandon(report)
            plan = self._prepare(report)
            if plan and plan.counts.changes:
                self._enforce(plan, handed_over=True)
                report += plan.counts
                report.unsent = plan.counts.changes
        if report.unsent:
            report.state = "planned"
        return report

    def compare_range(
        self, low: str | None, high: str | None, write: Callable[[Iterable[Any], Callable[[], Any]], str]
    ) -> tuple[str, str] | None:
        """Compare a range of profile IDs with what the ledger has of it, for another process that plans.

        Args:
            low: Where the range begins; None for no end.
            high: Where the next one does.
            write: Writes records, and what a function returns after them; returns the file's name.

        Returns:
            Files of the changes, and of what else there is to know. None where the plan is better compared
            whole: changes run rules or are left out, or the source does not have the order of bytes.
        """
        is_plain = isinstance(self.kind, Members) and self.kind.rules == "none"
        if not is_plain or self.retry_rejected == "never":
            return None
        self.ledger.load()
        state, held = self._state(), set[str]()

        def inside() -> Iterator[Any]:
            for record in self.source():
                ids = record.ids if isinstance(record, Chunk) else ()
                if ids and ((low is not None and min(ids) < low) or (high is not None and max(ids) >= high)):
                    raise OutOfOrderError
                yield record

        def noted(chunks: Iterable[Chunk]) -> Iterator[Chunk]:
            for chunk in within(chunks, low, high):
                held.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
                yield chunk

        def consume(planner: Planner) -> str:
            known = self.ledger.known()
            known = Folded(noted(known.snapshot), [within(each, low, high) for each in known.plans])
            return write(planner(known, within(self.ledger.uncertain(), low, high)), dict)

        try:
            plan = self._plan_once(consume, inside, leave_out=lambda changes, _: changes)
        except OutOfOrderError:
            return None
        facts = {
            "state": state,
            "held": sorted(held),
            "counts": plan.counts.numbers,
            "suspicious": plan.suspicious.sums,
            "witnesses": plan.comparison.witnesses,
        }
        letters = (Rejection(each["reason"], each["profile_id"]) for each in map(json.loads, plan.letters))
        return plan.result, write(letters, lambda: facts)

    def _state(self) -> str:
        """Return what a comparison depends on, but for the source."""
        return f"{self.ledger.state()} {self.kind!r}"

    @syncing()
    def dry_run(self, requests_per_second: float) -> Report:
        """Plan and guard, and send and record nothing.

        Args:
            requests_per_second: For the estimate of the time that the plan would take.
        """
        report = Report()
        self.ledger.load()
        plan = self._plan(lambda planner: _calls(planner(self.ledger.known(), self.ledger.uncertain())))
        judge_suspicious(plan.suspicious, self.limits.suspicious_ids)
        counts = plan.counts
        try:
            verdict = {"send": "would be sent", "skip": "would be skipped"}[self.guard.check(counts)]
        except GuardError as error:
            verdict = f"would be refused: {error}"
        changes, calls = plan.result
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

    def _is_skipped(self, report: Report) -> bool:
        """Whether this run has older data than the ledger, and is to do nothing then."""
        held, ours = self.ledger.facts.data_until, self.facts.data_until
        if self.on_older_run == "allow" or not held or not ours or ours >= held:
            return False
        text = (
            f"The ledger holds data until {held},\nand this run has older data, until {ours}.\n"
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

    @property
    def _has_key_of_before(self) -> bool:
        return self.ledger.facts.has_key_of(self.facts)

    def _check_key(self) -> None:
        """Notice that another API key is used than in the run before, which may be of another environment."""
        if self._has_key_of_before:
            return
        text = (
            "The API key or the platform name on the connection has changed since the last run.\n"
            "If the new key is of another environment (sandbox or live), this ledger says nothing about it:\n"
            "set Environment on the connection, so that each environment has a ledger of its own."
        )
        if isinstance(self.kind, Profiles) and not self.ledger.identity.environment:
            if not self.kind.sends_all:
                raise LedgerError(
                    f"{text}\nNothing was sent: Talon.One does not tell which attributes a profile has."
                    " If the environment is the same, set Environment to its name, or send all once with "
                    "send='all'."
                )
            # What the other key acknowledged is not known of this one before it is sent.
            self.ledger.suspect([PROFILES])
        log.warning("%s", text)
        if self.audiences is not None:
            self.audiences.key_has_changed = True

    def _tell_of_others(self, owner: str) -> None:
        """Log who else changes the same audiences or attributes, and which ledgers of theirs there are."""
        writers = {_task_of(each) for each in (self.ledger.owner, *self.ledger.other_writers)}
        if others := sorted(writers - {_task_of(owner), ""}):
            what = "attributes" if isinstance(self.kind, Profiles) else "audiences"
            log.warning(
                "Another task changed the same %s since this one did:\n%s\n"
                "Each undoes what the other does. Let one task keep them.\n"
                "Its changes are checked against this query now.",
                what,
                ", ".join(others),
            )
        if not self.ledger.version and (neighbours := self.ledger.neighbours()):
            log.warning(
                "A new ledger begins beside another one of the same audience:\n%s", "\n".join(neighbours)
            )

    def _finish(self, report: Report, cursor: TaskCursor) -> set[Member]:
        """Send what an earlier try left of its plan, without reading the source; return what was refused."""
        counts = Counts()
        before = self._refused_before()

        def left(*_: Iterable[Chunk]) -> Iterator[Chunk]:
            for chunk in self.ledger.refused():
                self.ledger.carry(chunk)
            return _counted(self.ledger.unacknowledged(withheld=False), counts)

        # What others noted is for the plan after this one, which is compared with the source.
        draft = replace(self.ledger.draft(left), spent=())
        log.info("Resuming the plan of an earlier try: %s changes are left.", f"{counts.changes:,}")
        if not counts.changes:
            self.ledger.discard(draft)
            return set()
        # What is known of the audiences is compared with Talon.One afterwards.
        before_it = self.ledger.facts
        facts = replace(self.facts, audiences=before_it.audiences, filling=before_it.filling)
        self.ledger.enforce(draft, facts=facts, names=self.ledger.names)
        cursor.set(self.ledger.version)
        share = self.ledger.share()
        report.resumed += counts.changes
        limits = replace(self.limits, refused_before=before)
        refused = self._push(share, share.batches(), report, Counts(), limits)
        report.plan_anew()
        log.info("That plan is finished. Now the source is planned anew.")
        return refused

    def _sync(self, report: Report, cursor: TaskCursor | None, refused: set[Member]) -> None:
        """Plan the source as it is now, and send what the guard lets pass.

        Args:
            report: Of the run.
            cursor: Told of the plan that is sent.
            refused: What was refused in this run already, and is not sent again.
        """
        for _ in range(_ROUNDS):
            plan = self._prepare(report, refused)
            if plan is None or not plan.counts.changes:
                return
            self._enforce(plan)
            if cursor:
                cursor.set(self.ledger.version)
            share = self.ledger.share()
            limits = replace(self.limits, refused_before=plan.refused_before, counted=frozenset(refused))
            refused |= self._push(share, plan.comparison.chunks(share), report, plan.counts, limits)
            try:
                lost = self._lost(plan, report, after=True)
            except BaseException:
                report += plan.counts
                raise
            if not lost:
                report += plan.counts
                if self.ledger.facts.filling:
                    self.ledger.remember(self._facts())
                return
            # What this round sent belongs to audiences that were made anew meanwhile.
            report.resumed += plan.counts.changes
            report.plan_anew()
        raise LedgerError(
            "An audience was deleted and made again while this run was sending to it, several times.\n"
            "What Talon.One acknowledged is recorded. Find out who deletes the audience, and run again."
        )

    def _asked(self, plan: Planned, report: Report) -> bool:
        """Whether the guard refuses this plan and a person may allow it; the report has the words then."""
        report.allow = None
        if self.asks and plan.counts.changes:
            try:
                self.guard.check(plan.counts)
            except GuardError as error:
                report.verdict, report.allow = error.allow and str(error), error.allow
        return report.allow is not None

    def _prepare(self, report: Report, refused: Collection[Member] = ()) -> Planned | None:
        """Plan, ask the guard, and create or check the audiences; return a plan that may be sent.

        Returns:
            The plan, whose counts are not in the report yet where it has changes; None where the guard skips
            it.
        """
        for _ in range(_ROUNDS):
            plan = self._plan(self.ledger.draft, refused)
            report.suspicious = plan.suspicious.counts
            try:
                judge_suspicious(plan.suspicious, self.limits.suspicious_ids)
                passed = self._asked(plan, report) or self.guard.check(plan.counts) == "send"
            except (InvalidInputError, GuardError) as error:
                self.ledger.discard(plan.result)
                _count_unsent(report, plan.counts)
                if report.sent and isinstance(error, GuardError):
                    raise GuardError(
                        f"{error}\nThat is about the plan of the source as it is now:\n"
                        f"{report.sent:,} changes that an earlier try had left of its plan were sent before.",
                        error.allow,
                    ) from error
                raise
            if not passed:
                self.ledger.discard(plan.result)
                self._bury(plan.letters)
                _count_unsent(report, plan.counts)
                report.verdict = (
                    "skipped: The source has no rows, and on_empty is 'skip': its plan was not sent."
                )
                log.warning("%s", report.verdict)
                return None
            try:
                lost = self._lost(plan, report)
            except BaseException:
                _count_unsent(report, plan.counts)
                raise
            if lost:
                log.warning(
                    "Talon.One has lost the members of %d audience(s) that the ledger has; all are "
                    "sent again.",
                    len(lost),
                )
                self.ledger.discard(plan.result)
                continue
            self._bury(plan.letters)
            if not plan.counts.changes:
                if self.ledger.has_lost_plans:
                    # It keeps what is known of them.
                    self._enforce(plan)
                else:
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
            consume: Called with the planner; called again where the source is not sorted, and must start anew
                then.
            refused: What was refused, and counted, in this run.
        """
        before = self._refused_before()
        leave_out = partial(
            _left_out,
            refused=refused,
            before=before if self.retry_rejected == "never" else frozenset(),
            # A dry run writes nothing.
            carry=self.ledger.carry if consume == self.ledger.draft else lambda _: None,
        )
        try:
            plan = self._plan_of_ranges(self.compared, consume) if self.compared and not refused else None
            plan = plan or self._plan_once(consume, self.source, leave_out)
        except OutOfOrderError:
            log.info("The source is not sorted by bytes: it is read again and sorted on this worker's disk.")
            plan = self._plan_once(consume, self.source, leave_out, self.kind.sort)
        plan = replace(plan, refused_before=before)
        log.info("Plan: %s\nLedger: %s", self.kind.describe(plan.counts), self.ledger.place)
        return plan

    def _plan_of_ranges(self, compared: Compared, consume: Callable[[Planner], Any]) -> Planned | None:
        """Join what others have compared; None where the ledger has changed since."""
        counts, states, held = Counts(), set[str](), set[str]()
        plan = Planned(None, counts, Spool(), self.kind.compare(self.ledger), SuspiciousIds())

        def join(facts: Mapping[str, Any]) -> None:
            nonlocal counts
            counts += Counts.of(facts["counts"])
            plan.suspicious.join(*facts["suspicious"])
            for audience, profile_id in facts["witnesses"].items():
                plan.comparison.witnesses.setdefault(audience, profile_id)
            states.add(facts["state"])
            held.update(facts["held"])

        def planner(*_: Iterable[Chunk]) -> Iterable[Chunk]:
            # Here, and not before: from now on the draft covers what others have noted.
            if states != {self._state()}:
                raise _OtherStateError
            # The ledger registers its audiences while what it has is read, which nobody does now.
            return chain((Chunk([], audience) for audience in sorted(held)), compared.changes())

        for rejection in compared.facts(join):
            _keep(rejection, plan.letters)
        try:
            return replace(plan, result=consume(planner))
        except _OtherStateError:
            log.info("The ledger has changed since the ranges were compared: all is compared here.")
            plan.letters.close()
            return None

    def _plan_once(
        self,
        consume: Callable[[Planner], Any],
        source: Source,
        leave_out: Callable[[Iterable[Chunk], Counts], Iterable[Chunk]],
        arrange: Callable[[Iterable[Any]], Iterable[Any]] = lambda records: records,
    ) -> Planned:
        counts = Counts()
        letters = Spool()
        comparison = self.kind.compare(self.ledger)
        suspicious = SuspiciousIds()

        with ExitStack() as stack:
            records = stack.enter_context(_closed_at_the_end(source()))

            def planner(known: Iterable[Chunk], uncertain: Iterable[Chunk]) -> Iterable[Chunk]:
                arranged = stack.enter_context(_closed_at_the_end(arrange(watched(records, suspicious))))
                keep = partial(_keep, letters=letters)
                changes = comparison.changes(arranged, known, uncertain, counts, keep)
                return comparison.kept(leave_out(changes, counts))

            return Planned(consume(planner), counts, letters, comparison, suspicious)

    def _enforce(self, plan: Planned, *, handed_over: bool = False) -> None:
        names = plan.comparison.names
        facts = replace(self._facts(), filling=plan.comparison.filling(plan.counts.audiences))
        if handed_over:
            self.ledger.note_refused_before(plan.result, plan.refused_before)
        self.ledger.enforce(plan.result, facts=facts, names=names, handed_over=handed_over)

    def _facts(self) -> RunFacts:
        return self.facts if self.audiences is None else replace(self.facts, audiences=self.audiences.known)

    def _lost(self, plan: Planned, report: Report, *, after: bool = False) -> Collection[str]:
        """Return the audiences that Talon.One has lost the members of, as far as anybody can tell."""
        if self.audiences is None:
            return ()
        lost = self.audiences.check(
            self.ledger, plan.counts, plan.comparison.witnesses, self.sender, report, after=after
        )
        if after:
            self.ledger.remember(self._facts())
        return lost

    def _abandon(self, report: Report) -> None:
        """Count what runs rules and may have been sent by a run that was killed: it is not sent again."""
        if abandoned := self.ledger.abandon():
            log.warning(
                "An earlier run was killed while %s changes that run rules may have been under way.\n"
                "They are not sent again, and have dead letters.",
                f"{abandoned:,}",
            )
            report.resumed += abandoned
            report.unclear += abandoned

    def _refused_before(self) -> frozenset[Member]:
        refused: set[Member] = set()
        for chunk in self.ledger.refused():
            refused.update(zip(chunk.ids, chunk.each_key, strict=False))
            if len(refused) > _REMEMBERED:
                break
        return frozenset(refused)

    def _push(
        self, share: Share, chunks: Iterator[Chunk], report: Report, counts: Counts, limits: Limits
    ) -> set[Member]:
        """Send the plan in force, return what was refused, and say how far it came where that ends early."""
        push = Push(self.kind, share, report, limits)
        try:
            push.run(_generator(chunks), self.sender)
        except BaseException:
            report += counts
            report.seconds = time.monotonic() - report.began
            log.warning(
                "Stopped early:\n%s\nA retry may send a part again, which changes nothing twice.", report
            )
            raise
        return push.refused

    def _bury(self, letters: Spool) -> None:
        """Write the dead letters of records that cannot be sent."""
        for number, letter in enumerate(letters, start=1):
            self.ledger.reject(json.loads(letter))
            if number % MAX_CHANGES == 0:
                self.ledger.flush()
        self.ledger.flush()
        letters.close()

    @contextmanager
    def _reported(self, report: Report) -> Iterator[None]:
        """Have a report say how the run ended, also where it fails."""
        try:
            yield
            report.state = "done" if report.verdict is None else "refused"
        except (GuardError, OlderRunError) as error:
            report.state, report.verdict, report.allow = "refused", str(error), error.allow
            raise
        finally:
            report.seconds = time.monotonic() - report.began
            report.dead_letters = self.ledger.dead_letters
            report.ledger_version = self.ledger.version


Planner: TypeAlias = Callable[[Iterable[Chunk], Iterable[Chunk]], Iterable[Chunk]]
"""Makes changes of what is known and what is uncertain."""


@syncing()
def push_share(
    share: Share,
    chunks: Iterator[Chunk],
    kind: Members | Profiles,
    sender: Callable[[], AbstractAsyncContextManager[Any]],
    limits: Limits,
    report: Report | None = None,
) -> Report:
    """Send what is left of some parts of a plan.

    Args:
        share: These parts.
        chunks: Of the share, as they travel.
        kind: Members or attributes.
        sender: Opens the sender.
        limits: How to behave.
        report: Where to count, for whoever needs the counts of a push that fails.

    Returns:
        The counts, where ``resumed`` is what was left.

    Raises:
        RequestError: The push stopped early; what was acknowledged is noted.
        LedgerError: Another run took over.
    """
    report = report or Report()
    report.resumed += share.changes + share.abandoned
    report.unclear += share.abandoned
    try:
        limits = replace(limits, refused_before=share.refused_before)
        Push(kind, share, report, limits).run(_generator(chunks), sender)
        report.state = "done"
    finally:
        report.seconds = time.monotonic() - report.began
        report.dead_letters = share.dead_letters
        log.info("%s", report)
    return report


def combined_report(
    planned: Report, outcome: Outcome, pushed: Iterable[Mapping[str, Any]], seconds: float
) -> Report:
    """Join the report of a plan with what became of it in several processes.

    Args:
        planned: Of ``Mirror.hand_over``. Where it is divided by audience, the result is.
        outcome: What the ledger says.
        pushed: Summaries of ``push_share``, of each task's last try.
        seconds: From the plan to now.
    """
    report = Report(
        seconds=seconds,
        dead_letters=outcome.dead_letters,
        ledger_version=planned.ledger_version,
        state="done",
    )
    report += planned
    for each in map(Report.of, pushed):
        for name in ("requests", "retries", "throttled"):
            setattr(report, name, getattr(report, name) + getattr(each, name))
        report.rejected.update(each.rejected)
    # The ledger knows the skipped and refused ones of all tries.
    report.rejected[CHANGED] = outcome.skipped
    refused = report.rejected.total() - planned.rejected.total()
    report.rejected[REFUSED_IN_EARLIER_TRY] = outcome.refused - refused
    report.rejected = +report.rejected
    is_divided = bool(planned.known or planned.additions)
    report.added.update(outcome.added if is_divided else {"": outcome.added.total()})
    report.removed.update(outcome.removed if is_divided else {"": outcome.removed.total()})
    report.unclear += outcome.unclear
    report.unsent = outcome.changes - outcome.acknowledged - outcome.refused - outcome.unclear
    return report


def _keep(rejection: Rejection, letters: Spool) -> None:
    if rejection.profile_id:
        letter = {"time": now(), "profile_id": rejection.profile_id, "reason": rejection.reason}
        letters.write(json.dumps(letter).encode())


def _count_unsent(report: Report, counts: Counts) -> None:
    """Count a plan that is not sent."""
    report += counts
    report.unsent += counts.changes


def _task_of(owner: str) -> str:
    """Return DAG and task of an owner, without the run."""
    return ".".join(owner.split("/")[:2]) if owner.count("/") > 1 else owner.partition("/")[0]


def _calls(chunks: Iterable[Chunk]) -> tuple[int, int]:
    """Return how many changes run rules, and how many profiles they are of."""
    changes = profiles = 0
    last = None
    for chunk in chunks:
        for change in chunk.changes() if chunk.runs_rules else ():
            if change.runs_rules:
                changes += 1
                profiles += change.profile_id != last
                last = change.profile_id
    return changes, profiles


def _counted(chunks: Iterable[Chunk], counts: Counts) -> Iterator[Chunk]:
    """Yield changes and count them."""
    for chunk in chunks:
        for change in chunk.changes():
            (counts.additions if change.action == "add" else counts.removals)[change.key] += 1
        yield chunk


def _left_out(
    changes: Iterable[Chunk],
    counts: Counts,
    *,
    refused: Collection[Member],
    before: Collection[Member],
    carry: Callable[[Chunk], None],
) -> Iterator[Chunk]:
    """Leave out additions that were refused before, but for uncertain ones, which a ledger must not forget.

    Args:
        changes: Of a plan.
        counts: Of the plan.
        refused: What was refused, and counted, in this run.
        before: What was refused in earlier runs and is not to be sent again.
        carry: Called with what is left out, so that later runs know of it.
    """
    for chunk in changes:
        members = zip(chunk.ids, chunk.each_key, strict=False) if refused or before else ()
        bad = [at for at, member in enumerate(members) if member in refused or member in before]
        bad = [at for at, verb in zip(bad, chunk.at(bad).each_verb, strict=False) if verb in ("add", "add!")]
        if not bad:
            yield chunk
            continue
        left_out = chunk.at(bad)
        carry(left_out)
        counts.additions -= Counter({key: len(part) for key, part in left_out.by_key()})
        counted = sum(member in refused for member in zip(left_out.ids, left_out.each_key, strict=False))
        counts.duplicate += counted
        counts.rejected += Counter({_REFUSED_BEFORE: len(bad) - counted})
        if rest := chunk.without(bad):
            yield rest


def _generator(chunks: Iterator[Chunk]) -> Generator[Chunk, None, None]:
    yield from chunks


@contextmanager
def _closed_at_the_end(records: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Close the source's cursor, before anybody opens another one, and the files of a sort."""
    try:
        yield records
    finally:
        if isinstance(records, Generator):
            records.close()
