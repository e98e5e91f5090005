"""Members of audiences: how they are compared, put into requests and sent; and explicit changes of them."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from operator import lt
from typing import Any, ClassVar, Literal

from airflow_provider_talon_cdp.changes.change import Change, Chunk, Record, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import EVERYTHING, Scope, diff, in_order
from airflow_provider_talon_cdp.changes.spool import sorted_members
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import DOTS, FAULT_OF_DOTS, MAX_CHANGES
from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError, RequestError, UnclearError
from airflow_provider_talon_cdp.ledger.ledger import Ledger
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.sync.loop import syncing
from airflow_provider_talon_cdp.sync.push import (
    Flight,
    Limits,
    Push,
    fail_if_rejected,
    judge_suspicious,
    now,
    watched,
)
from airflow_provider_talon_cdp.sync.report import Report

log = logging.getLogger(__name__)

# When twice this many changes were refused, which is more than is tolerated, and none was accepted, the
# configuration is wrong and not the data.
_HOPELESS = 50
# Chunks that are noted together before the first of them is sent.
_NOTED = 64


Rules = Literal["none", "changes", "all"]


@dataclass(frozen=True, kw_only=True)
class Members:
    """Members of audiences.

    Args:
        scope: What may change.
        lets_audiences_go: Whether the removal of members is done where Talon.One has no such audience any
            more.
        rules: Whether Talon.One runs its rules: for ``none``, for ``changes`` after the first fill of an
            audience, or for ``all``. A plan marks such changes, and each travels in a call for its profile.
    """

    scope: Scope = EVERYTHING
    lets_audiences_go: bool = True
    rules: Rules = "none"

    in_request: ClassVar[int] = MAX_CHANGES
    label: ClassVar[None] = None
    noun: ClassVar[str] = "records"
    names: ClassVar[Sequence[str]] = ()

    def sort(self, records: Iterable[Record]) -> Iterator[Record]:
        """Sort records on this worker's disk."""
        return sorted_members(records)

    def compare(self, ledger: Ledger, /) -> MemberPlan:
        """Begin a plan."""
        if self.rules == "none":
            return MemberPlan(self.scope)
        filled = ledger.filled()
        # Of an audience that was made anew, nothing was sent.
        withheld = {
            member: action
            for member, action in ledger.withheld().items()
            if member[1] not in ledger.suspected
        }
        runs_rules = filled.__contains__ if self.rules == "changes" else _always
        return MemberPlan(replace(self.scope, runs_rules=runs_rules, withheld=withheld))

    def describe(self, counts: Counts) -> str:
        """Say what a plan does."""
        return (
            f"{counts.additions.total():,} to add, {counts.removals.total():,} to remove, "
            f"{counts.unchanged:,} unchanged;"
            f" the ledger has {counts.known.total():,} members"
        )

    def letter(self, change: Change, error: RejectedError, /) -> dict[str, Any]:
        """Write what a dead letter says about a refused change."""
        return {"audience_id": change.key, "action": change.action, "reason": str(error)}

    async def deliver(self, flight: Flight, sender: Any) -> None:
        """Send a chunk in one request, and halve it when it is refused.

        Talon.One refuses a request whole and does not say which record is bad; halving finds the bad ones, so
        that the rest lands. Changes that were refused in an earlier run travel one by one, apart from the
        others. A chunk that runs rules is of one profile.
        """
        left = list(_divided(flight))
        while left:
            positions, chunk = left.pop()
            try:
                await _send(flight, positions, chunk, sender)
            except NotFoundError as error:
                apart = list(chunk.by_key())
                if len(apart) > 1:
                    left += _by_audience(positions, chunk)
                    continue
                audience = apart[0][0]
                if self.lets_audiences_go and await _is_gone(sender, chunk):
                    log.warning(
                        "Talon.One has no audience %r any more, so nobody needs to be removed.", audience
                    )
                    flight.sent(chunk, positions)
                    continue
                error.audiences = [audience]
                error.explain(
                    f"Audience in the request: {audience}.\n"
                    "If it is missing, create it with CreateAudienceOperator, or let a mirror do it "
                    "with audience_name."
                )
                raise
            except RejectedError as error:
                if len(chunk) > 1:
                    middle = len(chunk) // 2
                    left.append((positions[middle:], chunk[middle:]))
                    left.append((positions[:middle], chunk[:middle]))
                    continue
                flight.refused(positions[0], error, f"refused by Talon.One ({error.status})")
                if _is_hopeless(flight, error):
                    # Before giving up, try the other end of the chunk: perhaps only its beginning is bad.
                    left.reverse()


class MemberPlan:
    """One comparison of a source of members with a ledger.

    Attributes:
        witnesses: One member by audience that both have.
    """

    names: Sequence[str] = ()

    def __init__(self, scope: Scope) -> None:
        self.witnesses: dict[str, str] = {}
        self._scope = scope

    def changes(
        self,
        records: Iterable[Record],
        known: Iterable[Chunk],
        uncertain: Iterable[Chunk],
        counts: Counts,
        on_rejected: Callable[[Rejection], None],
    ) -> Iterator[Chunk]:
        """Return what makes the audiences equal to the source.

        Args:
            records: The source, sorted.
            known: What the ledger has, sorted.
            uncertain: What may have changed without an acknowledgement, sorted.
            counts: Kept up while this runs.
            on_rejected: Called for each record that cannot be sent.

        Raises:
            OutOfOrderError: The source is not sorted.
        """
        if self._scope.runs_rules:
            records = _without_dots(records)
        wanted = in_order(records, counts, on_rejected)
        return diff(known, wanted, counts, uncertain=uncertain, scope=self._scope, witnesses=self.witnesses)

    def filling(self, audiences: Iterable[str]) -> list[str]:
        """Return the audiences whose first members are sent in bulk, though other changes run rules."""
        runs_rules = self._scope.runs_rules
        return [each for each in audiences if not runs_rules(each)] if runs_rules else []

    def kept(self, changes: Iterable[Chunk]) -> Iterable[Chunk]:
        """Keep what a ledger has no place for: nothing."""
        return changes

    def chunks(self, share: Share) -> Iterator[Chunk]:
        """Return the chunks of the plan in force."""
        return share.batches()


def _always(_: str) -> bool:
    return True


def _without_dots(records: Iterable[Record]) -> Iterator[Record]:
    """Reject profile IDs that cannot be in a path."""
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
    """Send explicit adds and removes as they come, log how it goes, and return the report.

    Args:
        records: A blocking stream of chunks and of records that cannot be changes.
        sender: Opens the sender.
        outside: Tells the ledgers of the same audiences, and keeps the dead letters.
        limits: How to behave.
        report: Where to count, for whoever needs the counts of a run that fails.

    Raises:
        RejectedRecordsError: Everything good was sent, but more records than ``max_rejected`` were rejected.
        RequestError: The run stopped early; the log says how far it came.
    """
    report = report or Report()
    journal = ExplicitJournal(outside)
    suspicious = SuspiciousIds()
    looked_at = watched(records, suspicious, stops=limits.suspicious_ids == "fail")
    chunks = _noted(_batches(looked_at, report, journal, in_flight=limits.in_flight), outside)
    try:
        Push(Members(lets_audiences_go=False), journal, report, limits).run(chunks, sender)
        report.state = "done"
    except BaseException:
        log.warning("Stopped early:\n%s\nA retry may send a part again, which changes nothing twice.", report)
        raise
    finally:
        report.seconds = time.monotonic() - report.began
        report.dead_letters = journal.dead_letters
        report.suspicious = suspicious.counts
    judge_suspicious(suspicious, limits.suspicious_ids)
    log.info("Done:\n%s", report)
    fail_if_rejected(report, limits.max_rejected)
    return report


class ExplicitJournal:
    """The journal of explicit changes: no ledger holds them, so it keeps dead letters and counts.

    Args:
        outside: Where the letters go.

    Attributes:
        changes: Changes that were taken from the source so far.
    """

    def __init__(self, outside: OutsideChanges) -> None:
        self.changes = 0
        self._outside = outside
        self._in_flight = 0

    @property
    def dead_letters(self) -> str | None:
        """Folder of the dead letters, or None when there are none."""
        return self._outside.dead_letters

    def leaving(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Count it: what it changes was noted before; see ``_noted``."""
        self._in_flight += 1

    def landed(
        self,
        number: int,
        refused: Iterable[int] = (),
        skipped: Iterable[int] = (),
        unclear: Iterable[int] = (),
        left: Iterable[int] = (),
    ) -> None:
        """Count it."""
        self._in_flight -= 1

    def without_effect(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Count it."""
        self._in_flight -= 1

    def reject(self, letter: Mapping[str, Any]) -> None:
        """Put a record into the dead letters."""
        self._outside.reject(letter)

    def suspect(self, audiences: Iterable[str]) -> None:
        """A ledger of this audience finds out by itself."""

    def flush(self) -> None:
        """Make the letters durable."""
        self._outside.flush()

    def end(self) -> None:
        """Make the letters durable, and tell the ledgers whether something may still arrive."""
        self._outside.end(in_flight=self._in_flight > 0)

    def refuse_lost(self) -> None:
        """Nobody takes explicit changes over."""

    def leave_behind(self, chunks: Iterable[Chunk]) -> None:
        """Nobody takes explicit changes over."""


def _noted(chunks: Generator[Chunk, None, None], outside: OutsideChanges) -> Generator[Chunk, None, None]:
    """Tell the ledgers of the same audiences, some chunks ahead of their sending."""
    try:
        while some := list(islice(chunks, _NOTED)):
            outside.note(Chunk.joined(some))
            yield from some
    finally:
        chunks.close()


def _batches(
    records: Iterable[Record], counts: Counts, journal: ExplicitJournal, *, in_flight: int
) -> Generator[Chunk, None, None]:
    """Yield chunks that fill a request, and count the records; equal changes that come soon fold."""
    # One chunk more: what is fresh may be held for a while before it travels.
    recent = _Recent((in_flight + 1) * MAX_CHANGES)
    held: list[Chunk] = []
    count = 0
    try:
        for record in records:
            if isinstance(record, Rejection):
                counts.read += 1
                counts.rejected[record.reason] += 1
                if record.profile_id:
                    letter = {"time": now(), "profile_id": record.profile_id, "reason": record.reason}
                    journal.reject(letter)
                continue
            for piece in _pieces(record):
                # By the piece, as the rest of a long list is not accounted for where the push stops before
                # it.
                counts.read += len(piece)
                fresh = recent.fresh(piece)
                counts.duplicate += len(piece) - len(fresh)
                journal.changes += len(fresh)
                count += len(fresh)
                held.append(fresh)
                if count < MAX_CHANGES:
                    continue
                joined = Chunk.joined(held)
                full = count // MAX_CHANGES * MAX_CHANGES
                for start in range(0, full, MAX_CHANGES):
                    yield _full(joined[start : start + MAX_CHANGES], recent)
                held, count = [joined[full:]] if full < count else [], count - full
        if count:
            yield _full(Chunk.joined(held), recent)
    finally:
        # A generator that holds a cursor must close with this one, not at some later garbage collection.
        if isinstance(records, Generator):
            records.close()


def _full(chunk: Chunk, recent: _Recent) -> Chunk:
    return Chunk(chunk.ids, chunk.keys, chunk.verbs, disjoint_from_recent=recent.is_of_one_kind)


def _pieces(chunk: Chunk) -> Iterator[Chunk]:
    # A source may hand over all of a long list at once; its progress is told by the request.
    for start in range(0, len(chunk), MAX_CHANGES):
        for _, piece in chunk[start : start + MAX_CHANGES].by_key():
            yield piece


class _Recent:
    """The last changes, for folding: all of a stream would not fit in memory, and a repetition does no harm.

    Args:
        size: How many are remembered at the least.
    """

    def __init__(self, size: int) -> None:
        self._remembered = size
        self._history: deque[Chunk] = deque()
        self._size = 0
        # Tables are often read in the order of their keys. While IDs rise, none of them can be a repetition,
        # and comparing neighbours costs a quarter of what a set does.
        self._highest = ""
        self._seen: dict[tuple[Any, Any], set[str]] | None = None

    def fresh(self, chunk: Chunk) -> Chunk:
        """Take what is not among them, and remember it."""
        if self._seen is None and not self._rises(chunk):
            self._seen = {}
            for earlier in self._history:
                self._seen.setdefault((earlier.keys, earlier.verbs), set()).update(earlier.ids)
        if self._seen is not None:
            seen = self._seen.setdefault((chunk.keys, chunk.verbs), set())
            distinct = set(chunk.ids)
            if len(distinct) < len(chunk) or not seen.isdisjoint(distinct):
                fresh = [each for each in dict.fromkeys(chunk.ids) if each not in seen]
                chunk = Chunk(fresh, chunk.keys, chunk.verbs)
            seen.update(chunk.ids)
        self._history.append(chunk)
        self._size += len(chunk)
        while self._size - len(self._history[0]) >= self._remembered:
            self._forget(self._history.popleft())
        return chunk

    def _rises(self, chunk: Chunk) -> bool:
        if self._history:
            last = self._history[-1]
            if (last.keys, last.verbs) != (chunk.keys, chunk.verbs):
                return False
        highest, self._highest = self._highest, chunk.ids[-1] if chunk.ids else self._highest
        return all(map(lt, chain([highest], chunk.ids), chunk.ids))

    def _forget(self, chunk: Chunk) -> None:
        self._size -= len(chunk)
        if self._seen is not None:
            what = chunk.keys, chunk.verbs
            self._seen[what].difference_update(chunk.ids)
            if not self._seen[what]:
                del self._seen[what]

    @property
    def is_of_one_kind(self) -> bool:
        """Whether all have one audience and one action, so that no two of them share a profile."""
        return self._seen is None or len(self._seen) == 1


async def _send(flight: Flight, positions: Sequence[int], chunk: Chunk, sender: Any) -> None:
    """Send a part of a flight in one request."""
    if not chunk.runs_rules:
        await sender(chunk)
        flight.sent(chunk)
        return
    ((profile_id, adds, removes),) = chunk.entries()
    try:
        await sender.update_profile_audiences(
            profile_id, adds, removes, aloft=partial(flight.aloft, positions)
        )
    except RequestError as error:
        if error.is_unclear:
            flight.no_answer(error)
        if not isinstance(error, UnclearError):
            raise
    else:
        flight.sent(chunk, positions)


def _divided(flight: Flight) -> Iterator[tuple[Sequence[int], Chunk]]:
    """Yield what to send in one request each, the last first."""
    chunk, before = flight.chunk, flight.push.limits.refused_before
    if before:
        members = zip(chunk.ids, chunk.each_key, strict=False)
        if bad := [at for at, member in enumerate(members) if member in before]:
            for position in bad:
                yield [position], chunk.at([position])
            rest = sorted(set(range(len(chunk))).difference(bad))
            if rest:
                yield rest, chunk.at(rest)
            return
    yield range(len(chunk)), chunk


def _by_audience(positions: Sequence[int], chunk: Chunk) -> Iterator[tuple[Sequence[int], Chunk]]:
    places: dict[str, list[int]] = {}
    for at, key in zip(range(len(chunk)), chunk.each_key, strict=False):
        places.setdefault(key, []).append(at)
    for some in places.values():
        yield [positions[at] for at in some], chunk.at(some)


def _is_hopeless(flight: Flight, error: RejectedError) -> bool:
    push = flight.push
    refused = push.rejected[f"refused by Talon.One ({error.status})"]
    limit = push.limits.max_rejected
    if push.sent or refused < _HOPELESS:
        return False
    if limit is not None and refused >= max(2 * _HOPELESS, limit + 1):
        error.explain(f"The first {refused} records were all refused, so this is not about single records.")
        raise error
    return refused == _HOPELESS


async def _is_gone(sender: Any, chunk: Chunk) -> bool:
    """Whether a 404 for a chunk of one audience means that members need not be removed from it."""
    if any(change.action == "add" for change in chunk.changes()):
        return False
    try:
        # The path may be wrong instead. This changes nothing, and is answered with 404 then, too.
        await sender(Chunk([], chunk.keys))
    except NotFoundError:
        return False
    except RejectedError:
        # Not documented for a request without changes, but the path is right where it is looked at.
        return True
    return True
