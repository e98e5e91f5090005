"""Members of audiences: compares them with a ledger and sends their changes, also explicit ones."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import lt
from typing import Any, ClassVar

from airflow_provider_talon_cdp.changes.change import Chunk, Record, Rejection, in_batches
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import EVERYTHING, Scope, diff, in_order
from airflow_provider_talon_cdp.changes.spool import sorted_members
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import DOTS, FAULT_OF_DOTS, MAX_CHANGES, Rules
from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError, RequestError, UnclearError
from airflow_provider_talon_cdp.ledger.ledger import Ledger
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.sync.loop import syncing
from airflow_provider_talon_cdp.sync.push import (
    Flight,
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

# Stop if twice this many changes (and more than ``max_rejected``) were refused and none was accepted: the
# cause is then the configuration.
_ALL_REFUSED = 50
# Number of chunks whose changes are noted at once, before the first of them is sent.
_NOTED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Members:
    """Members of audiences.

    Args:
        scope: What may change.
        ignores_missing_audiences: Whether removals count as done if Talon.One does not have the audience any
            more.
        rules: Whether Talon.One runs its rules: for ``none``, for ``changes`` after the first fill of an
            audience, or for ``all``. A plan marks changes that run rules; they are sent in one call per
            profile.
    """

    scope: Scope = EVERYTHING
    ignores_missing_audiences: bool = True
    rules: Rules = "none"

    in_request: ClassVar[int] = MAX_CHANGES
    label: ClassVar[None] = None

    sort = staticmethod(sorted_members)

    def compare(self, ledger: Ledger, /) -> MemberPlan:
        """Return a plan that compares a source with the ledger."""
        if self.rules == "none":
            return MemberPlan(self.scope, ledger.suspected.union(ledger.facts.filling))
        # If an audience was deleted and made again, its withheld changes have no effect any more.
        withheld = {
            member: action
            for member, action in ledger.withheld().items()
            if member[1] not in ledger.suspected
        }
        return MemberPlan(replace(self.scope, runs_rules=self._runs_rules(ledger), withheld=withheld))

    def _runs_rules(self, ledger: Ledger) -> Callable[[str], bool]:
        """Return a function that tells whether the changes of an audience run rules."""
        if ledger.accepts_older and ledger.version < ledger.at_least:
            # The ledger does not know of later changes, whose rules may have run.
            return lambda _: False
        if self.rules == "changes":
            return ledger.filled().__contains__
        filling = frozenset(ledger.facts.filling)
        return lambda audience: audience not in filling

    def describe(self, counts: Counts) -> str:
        """Describe a plan for the log."""
        return (
            f"{counts.additions.total():,} to add, {counts.removals.total():,} to remove, "
            f"{counts.unchanged:,} unchanged;"
            f" the ledger has {counts.known.total():,} members"
        )

    def uncount(self, additions: Chunk, counts: Counts) -> None:
        """Take additions that are left out of a plan from its counts."""
        counts.additions -= Counter(additions.each_key)

    def reason(self, error: RejectedError, /) -> str:
        """Return the reason in the dead letter of a refused change."""
        return str(error)

    async def deliver(self, flight: Flight, sender: Any) -> None:
        """Send a chunk in one request, and halve it if it is refused.

        Talon.One refuses a whole request and does not tell which record is bad. Halving finds the bad ones,
        so that all others are accepted. Changes that were refused in an earlier run are sent one by one. A
        chunk that runs rules has only one profile.
        """
        pending = _initial_requests(flight)
        while pending:
            positions, chunk = pending.pop()
            try:
                await _send(flight, positions, chunk, sender)
            except NotFoundError as error:
                by_audience = chunk.positions_by_key()
                audience, *others = by_audience
                if others:
                    pending += [
                        ([positions[at] for at in some], chunk.at(some)) for some in by_audience.values()
                    ]
                    continue
                if self.ignores_missing_audiences and await _needs_no_removal(sender, chunk):
                    log.warning(
                        "Talon.One has no audience %r any more, so nobody needs to be removed.", audience
                    )
                    flight.sent(chunk, positions)
                    continue
                error.audiences = [audience]
                error.explain(
                    f"Audience in the request: {audience}.\n"
                    "If it is missing, create it with CreateAudienceOperator, or pass audience_name to a\n"
                    "mirror, which creates it (with audience_column: audience_name_column)."
                )
                raise
            except RejectedError as error:
                if len(chunk) > 1:
                    middle = len(chunk) // 2
                    pending.append((positions[middle:], chunk[middle:]))
                    pending.append((positions[:middle], chunk[:middle]))
                    continue
                flight.refused(positions[0], error, f"refused by Talon.One ({error.status})")
                is_new = chunk.member(0) not in flight.push.limits.refused_before
                if is_new and _gives_up_soon(flight, error):
                    # First try the other end of the chunk: perhaps only its beginning is bad.
                    pending.reverse()


class MemberPlan:
    """One comparison of a source of members with a ledger.

    Attributes:
        witnesses: By audience, a member that both the ledger and the source have.
    """

    names: Sequence[str] = ()

    def __init__(self, scope: Scope, unfilled: Collection[str] = ()) -> None:
        self.witnesses: dict[str, str] = {}
        self._scope = scope
        # Audiences with known members whose first members are still being sent.
        self._unfilled = unfilled

    def changes(
        self,
        records: Iterable[Record],
        known: Iterable[Chunk],
        uncertain: Iterable[Chunk],
        counts: Counts,
        on_rejected: Callable[[Rejection], None],
    ) -> Iterator[Chunk]:
        """Return the changes that make the audiences equal to the source, sorted.

        Raises:
            OutOfOrderError: The source is not sorted.
        """
        if self._scope.runs_rules:
            records = _without_dots(records)
        wanted = in_order(records, counts, on_rejected)
        return diff(known, wanted, counts, uncertain=uncertain, scope=self._scope, witnesses=self.witnesses)

    def filling(self, counts: Counts) -> list[str]:
        """Return the audiences whose first members are sent in bulk, whether other changes run rules or not.

        If this run is stopped, one that runs rules sends the rest in bulk, too.
        """
        if runs_rules := self._scope.runs_rules:
            return [audience for audience in counts.audiences if not runs_rules(audience)]
        return [
            audience
            for audience in counts.audiences
            if audience in self._unfilled or not counts.known[audience]
        ]

    def kept(self, changes: Iterable[Chunk]) -> Iterable[Chunk]:
        """Return the changes as they are: unlike attributes, the ledger holds all of them."""
        return changes

    def chunks(self, share: Share) -> Generator[Chunk, None, None]:
        """Return the chunks of the current plan."""
        return share.batches()


def _without_dots(records: Iterable[Record]) -> Iterator[Record]:
    """Reject profile IDs that cannot be part of a URL's path."""
    for record in records:
        if isinstance(record, Rejection) or DOTS.isdisjoint(record.ids):
            yield record
            continue
        bad = [at for at, profile_id in enumerate(record.ids) if profile_id in DOTS]
        yield from (Rejection(FAULT_OF_DOTS, record.ids[at]) for at in bad)
        if rest := record.without(bad):
            yield rest


@syncing()
def send_members(
    records: Iterable[Record],
    sender: Callable[[], AbstractAsyncContextManager[Any]],
    outside: OutsideChanges,
    limits: Limits,
    report: Report | None = None,
) -> Report:
    """Send explicit adds and removes while they are read, log the progress, and return the report.

    Args:
        records: Chunks of changes, and records that cannot be changes. Reading may block.
        sender: Opens the sender.
        outside: Notes the changes in the ledgers of the same audiences, and keeps the dead letters.
        limits: How to push.
        report: Where to count, so that the caller has the counts if the run fails.

    Raises:
        RejectedRecordsError: More records than ``max_rejected`` were rejected; all others were sent.
        RequestError: The run stopped early; the log has the counts.
    """
    report = outside.counts = report or Report()
    suspicious = SuspiciousIds()
    checked = count_suspicious(records, suspicious, fails=limits.suspicious_ids == "fail")
    chunks = _note_ahead(_batches(checked, report, outside, suspicious, in_flight=limits.in_flight), outside)
    try:
        Push(Members(ignores_missing_audiences=False), outside, report, limits).run(chunks, sender)
        report.state = "done"
        if outside.progress:
            outside.progress.delete()
    except BaseException:
        log.warning("Stopped early:\n%s\nThe next run may send some of it again, which is harmless.", report)
        raise
    finally:
        report.suspicious = suspicious.counts
    check_suspicious(suspicious, limits.suspicious_ids)
    log.info("Done:\n%s", report)
    fail_if_rejected(report, limits.max_rejected)
    return report


def _note_ahead(
    chunks: Generator[Chunk, None, None], outside: OutsideChanges
) -> Generator[Chunk, None, None]:
    """Yield chunks, and note them in the ledgers of the same audiences before they are sent."""
    try:
        while some := list(islice(chunks, _NOTED_AT_ONCE)):
            outside.note(Chunk.joined(some))
            yield from some
    finally:
        chunks.close()


def _batches(
    records: Iterable[Record],
    counts: Counts,
    outside: OutsideChanges,
    suspicious: SuspiciousIds,
    *,
    in_flight: int,
) -> Generator[Chunk, None, None]:
    """Yield chunks that fill a request, without recent duplicates, and count the records."""
    # One request more than those in flight, as changes wait for a full request before they are sent.
    recent, progress = _RecentChanges((in_flight + 1) * MAX_CHANGES), outside.progress

    def new_changes() -> Iterator[Chunk]:
        for record in records:
            if progress and (isinstance(record, Rejection) or suspicious.counts):
                # A retry reads it again, so that it counts it again.
                progress.hold()
            if isinstance(record, Rejection):
                counts.read += 1
                counts.rejected[record.reason] += 1
                if record.profile_id:
                    letter = {"time": now(), "profile_id": record.profile_id, "reason": record.reason}
                    outside.letters.add(letter)
                continue
            # A source may yield a long list as one chunk. In parts, the log shows progress per request, and
            # if the push stops, the rest of the list is not counted as read.
            for start in range(0, len(record), MAX_CHANGES):
                rows = record[start : start + MAX_CHANGES]
                if progress:
                    progress.read(rows)
                for _, part in rows.by_key():
                    counts.read += len(part)
                    new = recent.add(part)
                    counts.duplicate += len(part) - len(new)
                    outside.changes += len(new)
                    yield new

    with closing_generator(records):
        for chunk in in_batches(new_changes(), MAX_CHANGES):
            if progress:
                progress.expect(chunk)
            yield replace(chunk, disjoint_from_recent=recent.have_distinct_profiles)


class _RecentChanges:
    """The last changes, to leave out duplicates of them. Earlier duplicates are harmless."""

    def __init__(self, size: int) -> None:
        self._remembered = size
        self._history: deque[Chunk] = deque()
        self._size = 0
        # Tables are often read in the order of their keys. While IDs ascend there are no duplicates, and
        # comparing neighbours takes a quarter of the time of a set.
        self._highest = ""
        self._seen: dict[tuple[Any, Any], set[str]] | None = None

    def add(self, chunk: Chunk) -> Chunk:
        """Remember the changes, and return those that were not remembered already."""
        if self._seen is None and not self._ascends(chunk):
            self._seen = {}
            for earlier in self._history:
                self._seen.setdefault((earlier.keys, earlier.verbs), set()).update(earlier.ids)
        if self._seen is not None:
            seen = self._seen.setdefault((chunk.keys, chunk.verbs), set())
            distinct = set(chunk.ids)
            if len(distinct) < len(chunk) or not seen.isdisjoint(distinct):
                new = [profile_id for profile_id in dict.fromkeys(chunk.ids) if profile_id not in seen]
                chunk = Chunk(new, chunk.keys, chunk.verbs)
            seen.update(chunk.ids)
        if chunk:
            self._history.append(chunk)
            self._size += len(chunk)
        while self._size - len(self._history[0]) >= self._remembered:
            self._forget(self._history.popleft())
        return chunk

    def _ascends(self, chunk: Chunk) -> bool:
        """Return whether all changes so far have one audience and action, and their IDs ascend."""
        if self._history:
            last = self._history[-1]
            if (last.keys, last.verbs) != (chunk.keys, chunk.verbs):
                return False
        highest, self._highest = self._highest, chunk.ids[-1] if chunk.ids else self._highest
        return all(map(lt, chain([highest], chunk.ids), chunk.ids))

    def _forget(self, chunk: Chunk) -> None:
        self._size -= len(chunk)
        if self._seen is not None:
            key = chunk.keys, chunk.verbs
            self._seen[key].difference_update(chunk.ids)
            if not self._seen[key]:
                del self._seen[key]

    @property
    def have_distinct_profiles(self) -> bool:
        """Whether all changes have one audience and action, so that no two of them have the same profile."""
        return self._seen is None or len(self._seen) == 1


async def _send(flight: Flight, positions: Sequence[int], chunk: Chunk, sender: Any) -> None:
    """Send changes of a flight in one request."""
    if not chunk.runs_rules:
        try:
            await sender(chunk)
        except RequestError as error:
            flight.had_unclear_attempt |= error.repeated
            raise
        flight.sent(chunk)
        return
    ((profile_id, adds, removes),) = chunk.entries()
    try:
        await sender.update_profile_audiences(
            profile_id, adds, removes, while_in_flight=partial(flight.while_in_flight, positions)
        )
    except RequestError as error:
        if error.is_unclear:
            flight.count_unclear(error)
        if not isinstance(error, UnclearError):
            raise
    else:
        flight.sent(chunk, positions)


def _initial_requests(flight: Flight) -> list[tuple[Sequence[int], Chunk]]:
    """Return positions and changes for one request each, the last request first."""
    chunk, refused_before = flight.chunk, flight.push.limits.refused_before
    members = chunk.members if refused_before else ()
    bad = [at for at, member in enumerate(members) if member in refused_before]
    if not bad:
        return [(range(len(chunk)), chunk)]
    requests: list[tuple[Sequence[int], Chunk]] = [([at], chunk.at([at])) for at in bad]
    if rest := sorted(set(range(len(chunk))).difference(bad)):
        requests.append((rest, chunk.at(rest)))
    return requests


def _gives_up_soon(flight: Flight, error: RejectedError) -> bool:
    """Return whether half of the changes after which the push gives up were refused, and none accepted.

    Raises:
        RejectedError: All were refused, and none accepted.
    """
    push = flight.push
    refused = push.rejected[f"refused by Talon.One ({error.status})"] - push.rejected_before
    limit = push.limits.max_rejected
    if push.sent or refused < _ALL_REFUSED:
        return False
    if limit is not None and refused >= max(2 * _ALL_REFUSED, limit + 1):
        error.explain(f"The first {refused} records were all refused, so this is not about single records.")
        raise error
    return refused == _ALL_REFUSED


async def _needs_no_removal(sender: Any, chunk: Chunk) -> bool:
    """Return whether a 404 for removals from one audience means that the audience does not exist."""
    if any(change.action == "add" for change in chunk.changes()):
        return False
    try:
        # The path may be wrong instead. A request without changes then gets a 404, too.
        await sender(Chunk([], chunk.keys))
    except NotFoundError:
        return False
    except RejectedError:
        # Not documented for a request without changes, but the path exists.
        return True
    return True
