"""Sends chunks, many in flight, accounts for every change, and notes in a journal what became of it.

A profile is never in two requests at once, which Talon.One would refuse.
"""

from __future__ import annotations

import asyncio
import logging
import marshal
import time
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from math import ceil
from typing import Any, Literal, NamedTuple, Protocol

from airflow_provider_talon_cdp.changes.change import REMOVING, Change, Chunk, Profile
from airflow_provider_talon_cdp.changes.diff import Member
from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerError,
    NotFoundError,
    RejectedError,
    RejectedRecordsError,
    RequestError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.letters import UNCLEAR
from airflow_provider_talon_cdp.sync.loop import CallInReader, refuse_stopped, run_apart
from airflow_provider_talon_cdp.sync.report import Report

log = logging.getLogger(__name__)

# Crossing from the reading thread to the event loop costs once a list, and not once a chunk. A list is read
# while the one before it is sent, so this is the share of those in flight that is read ahead.
_READ_AHEAD = 1 / 8
_SECONDS_BETWEEN_FLUSHES = 2.0
_SECONDS_BETWEEN_PROGRESS_LINES = 5.0
# Bytes that wait on disk before reading pauses.
_MOST_ON_DISK = 2**30
# So often a point of the curve of a run is kept.
_SECONDS_BETWEEN_POINTS = 1.0
# While nothing is acknowledged, so often a line says why.
_SECONDS_BETWEEN_WAITING_LINES = 30.0
# So many calls without a clear answer in a row end a push: each of them has to be looked at by a person.
_MOST_UNCLEAR = 10
SuspiciousIdsRule = Literal["warn", "fail", "ignore"]
UNDEFINED = "is not defined"
"""Part of the reason why a profile with an unknown attribute was refused."""


class Journal(Protocol):
    """Where a push notes what becomes of its chunks: a share of a plan, or the notes of explicit changes."""

    @property
    def changes(self) -> int:
        """How many changes are to be sent."""
        ...

    @property
    def dead_letters(self) -> str | None:
        """Folder of the dead letters of this process, or None when there are none."""
        ...

    def leaving(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Note, durably, that a chunk, or changes of it that run rules, may leave now, before they do."""
        ...

    def landed(
        self,
        number: int,
        refused: Iterable[int] = (),
        skipped: Iterable[int] = (),
        unclear: Iterable[int] = (),
        left: Iterable[int] = (),
    ) -> None:
        """Note that the outcome of a chunk is known.

        Args:
            number: Of the chunk.
            refused: Positions in it of changes that Talon.One refused or was not asked about.
            skipped: Refused positions that were never sent.
            unclear: Positions of changes that run rules and got no clear answer: they are not sent again.
            left: Positions of changes without an effect, to be sent again, of a chunk that runs rules.
        """
        ...

    def without_effect(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Note that a chunk, or changes of it, did not land, and that this surely changed nothing."""
        ...

    def reject(self, letter: Mapping[str, Any]) -> None:
        """Put a record into the dead letters."""
        ...

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences."""
        ...

    def flush(self) -> None:
        """Make all notes durable."""
        ...

    def end(self) -> None:
        """Make all notes durable, and take back what was noted ahead and never left.

        Raises:
            LedgerError: Another process may have taken this one's work over.
        """
        ...

    def refuse_lost(self) -> None:
        """Raise when another process may have taken this one's work over; called before every attempt."""
        ...

    def leave_behind(self, chunks: Iterable[Chunk]) -> None:
        """Tell whoever took over which changes were in flight."""
        ...


class Kind(Protocol):
    """What a sync keeps in step: members of audiences, or attributes of profiles."""

    @property
    def label(self) -> str | None:
        """What acknowledged changes are counted by; None for their key."""
        ...

    async def deliver(self, flight: Flight, sender: Any) -> None:
        """Settle all changes of a flight, retries included, or raise what no other flight would survive."""
        ...

    def letter(self, change: Change, error: RejectedError, /) -> dict[str, Any]:
        """Write what a dead letter says about a refused change."""
        ...


class Refusal(NamedTuple):
    """One change that Talon.One refused, and how it answered.

    Args:
        position: Of the change in its chunk.
        error: The answer.
    """

    position: int
    error: RejectedError


class Flight:
    """A chunk under way; its delivery says here what becomes of the changes.

    Args:
        number: Chunks are numbered from 0 in the order in which they come.
        chunk: What it carries.
        push: The push that it belongs to.

    Attributes:
        refusals: The changes that were refused so far.
        unclear: Positions of changes that run rules and got no clear answer.
        settled: Changes that are counted.
    """

    def __init__(self, number: int, chunk: Chunk, push: Push) -> None:
        self.number = number
        self.chunk = chunk
        self.push = push
        self.refusals: list[Refusal] = []
        self.unclear: list[int] = []
        self.settled = 0
        self._sent: list[int] = []
        # Positions of changes that run rules, in a request without an answer so far.
        self._aloft: Collection[int] = ()

    @property
    def left(self) -> list[int]:
        """Positions without an outcome, of a chunk that runs rules."""
        known = {*self._sent, *self.unclear, *(position for position, _ in self.refusals)}
        return [each for each in range(len(self.chunk)) if each not in known]

    def sent(self, part: Chunk, positions: Iterable[int] = ()) -> None:
        """Note that a part of the chunk was acknowledged; of what runs rules, at which positions."""
        self._aloft = ()
        self._sent += positions
        self.settled += len(part)
        self.push.acknowledged(part)

    @contextmanager
    def aloft(self, positions: Collection[int]) -> Iterator[None]:
        """Note, durably, that a request which runs rules leaves now; it is under way in the block."""
        self.push.leaving(self.number, positions)
        self._aloft = positions
        try:
            yield
        except RequestError as error:
            if not error.is_unclear:
                self._aloft = ()
                self.push.without_effect(self.number, positions)
            raise

    def no_answer(self, error: RequestError | None = None) -> None:
        """Note that changes that run rules got no clear answer: they are not sent again.

        Args:
            error: The answer; None where the push ends before it came.
        """
        positions, self._aloft = self._aloft, ()
        if positions:
            self.settled += len(positions)
            self.unclear += positions
            self.push.no_answer(list(self.chunk.at(list(positions)).changes()), error)

    def refused(self, position: int, error: RejectedError, reason: str) -> None:
        """Note that the change at a position was refused.

        Args:
            position: In the chunk.
            error: The answer.
            reason: To count by; it holds no ID and no value.
        """
        self.settled += 1
        self.refusals.append(Refusal(position, error))
        (change,) = self.chunk.at([position]).changes()
        self.push.refuse(change, error, reason)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a push behaves.

    Args:
        in_flight: Requests in flight at the most.
        max_rejected: Rejections tolerated: so many are no reason to give up early. None for any number.
        suspicious_ids: What to do where profile IDs are valid and look wrong: ``warn``, ``fail`` or
            ``ignore``.
        refused_before: Changes that Talon.One refused in an earlier run, each as profile ID and key.
        counted: Changes that were refused in this run already: another refusal is a duplicate, without
            another letter.
        reads_ahead: Whether the chunks are read as fast as they come, so that a cursor is not held open for
            as long as they are sent; what is read ahead waits on disk.
    """

    in_flight: int = 64
    max_rejected: int | None = 0
    suspicious_ids: SuspiciousIdsRule = "warn"
    refused_before: frozenset[Member] = frozenset()
    counted: frozenset[Member] = frozenset()
    reads_ahead: bool = False


class Push:
    """The sending of a journal's chunks.

    Args:
        kind: Members or attributes.
        journal: Where it is noted what became of them.
        report: Kept up while this runs: acknowledged, rejected and unsent changes, and requests.
        limits: How to behave.

    Attributes:
        rejected: Changes that Talon.One refused in this push, by reason.
        refused: Their members; each cost a request or more, so there are never too many.
        sent: Changes that Talon.One acknowledged in this push.
        unclear: Changes that run rules and got no clear answer.
    """

    def __init__(self, kind: Kind, journal: Journal, report: Report, limits: Limits) -> None:
        self.limits = limits
        self.rejected: Counter[str] = Counter()
        self.refused: set[Member] = set()
        self._counted_again = 0
        self.sent = 0
        self.unclear = 0
        self._unclear_in_a_row = 0
        self._kind = kind
        self._journal = journal
        self._report = report
        self._flights: dict[asyncio.Task[None], Flight] = {}
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._flushed = time.monotonic()

    def run(
        self, chunks: Generator[Chunk, None, None], sender: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> None:
        """Send all chunks, on an event loop in a thread of its own.

        Args:
            chunks: In the order of the journal; read in the thread that calls this.
            sender: Opens the sender.

        Raises:
            RequestError: The push stopped early; what was acknowledged is noted, and the rest is counted as
                unsent.
            LedgerError: Another run took over.
        """
        try:
            run_apart(lambda reader: self._send_all(reader, chunks, sender))
        except NotFoundError as error:
            # Whoever deleted an audience may make it again by hand, without its members.
            self._journal.suspect(error.audiences)
            raise
        finally:
            self._report.rejected.update(self.rejected)
            self._report.duplicate += self._counted_again
            self._report.unclear += self.unclear
            settled = self.sent + self.rejected.total() + self._counted_again + self.unclear
            self._report.unsent += self._journal.changes - settled
            self._end_journal()

    def _end_journal(self) -> None:
        try:
            self._journal.end()
        except LedgerError:
            # A push that has sent all may learn only now that another run took over.
            with suppress(LedgerError):
                self._journal.leave_behind([flight.chunk for flight in self._flights.values()])
            raise

    def refuse(self, change: Change, error: RejectedError, reason: str) -> None:
        """Count a change that Talon.One refused."""
        self.refused.add(change[:2])
        if change[:2] in self.limits.counted:
            self._counted_again += 1
            return
        if reason not in self.rejected:
            log.warning("A record was refused, and others may follow:\n%s", error)
        self.rejected[reason] += 1

    def leaving(self, number: int, positions: Collection[int]) -> None:
        """Note that changes that run rules leave now."""
        self._journal.leaving(number, positions)

    def without_effect(self, number: int, positions: Collection[int]) -> None:
        """Note that a request with changes that run rules surely changed nothing."""
        self._journal.without_effect(number, positions)

    def no_answer(self, changes: Collection[Change], error: RequestError | None) -> None:
        """Count changes that run rules and got no clear answer, and write their letters.

        Raises:
            RequestError: Many in a row got none: the others are better sent later.
        """
        what = str(error).partition("\n")[0]
        if error and not self.unclear:
            log.warning("%s Others may follow.", what)
        self.unclear += len(changes)
        unclear = (
            error.become(RejectedError, UNCLEAR) if error else RejectedError(UNCLEAR, method="PUT", path="")
        )
        for change in changes:
            self._journal.reject(self._letter(change, unclear))
        if error:
            self._unclear_in_a_row += 1
            if self._unclear_in_a_row >= _MOST_UNCLEAR:
                raise error.become(
                    UnclearError,
                    f"{_MOST_UNCLEAR} calls in a row that run rules got no clear answer; the last one:\n"
                    f"{what}\n"
                    "They are not sent again, and have dead letters. The next run sends the rest.",
                ) from error

    def acknowledged(self, part: Chunk) -> None:
        """Count changes that Talon.One took."""
        self._unclear_in_a_row = 0
        self.sent += len(part)
        label = self._kind.label
        keys: Sequence[str] | str = part.keys if label is None else label
        if isinstance(keys, str) and isinstance(part.verbs, str):
            of = self._report.removed if part.verbs in REMOVING else self._report.added
            of[keys] += len(part)
            return
        for change in part.changes():
            of = self._report.removed if change.action == "remove" else self._report.added
            of[label or change.key] += 1

    async def _send_all(
        self,
        reader: CallInReader,
        chunks: Generator[Chunk, None, None],
        opening: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        async with opening() as sender:
            sender.may_leave = self._journal.refuse_lost
            telling = asyncio.create_task(self._tell_progress(sender))
            noting = asyncio.create_task(self._note_throughput(sender))
            try:
                async with self._flying(), aclosing(self._read(reader, chunks)) as stream:
                    number = 0
                    async for chunk in stream:
                        await self._wait_for(chunk, number)
                        if not chunk.runs_rules:
                            self._journal.leaving(number)
                        self._launch(Flight(number, chunk, self), sender)
                        number += 1
                    while self._flights:
                        await self._one_ends()
            finally:
                telling.cancel()
                noting.cancel()
                for name in ("requests", "retries", "throttled"):
                    setattr(self._report, name, getattr(self._report, name) + getattr(sender, name))
                self._report.note_throughput(0, ends=True)

    @asynccontextmanager
    async def _flying(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await self._end_flights()
            for flight in self._flights.values():
                flight.no_answer()
                if flight.settled and flight.chunk.runs_rules:
                    # What Talon.One took of it is not unclear. Who took over is told at the journal's end.
                    with suppress(LedgerError):
                        self._settle(flight, flight.left)

    async def _end_flights(self) -> None:
        for task in self._flights:
            task.cancel()
        await asyncio.gather(*self._flights, return_exceptions=True)

    async def _wait_for(self, chunk: Chunk, number: int) -> None:
        """Wait until one more flight may leave, and no profile of it is in another one."""
        self._raise_failure()
        while len(self._flights) >= self.limits.in_flight or self._meets_a_flight(chunk, number):
            await self._one_ends()

    def _meets_a_flight(self, chunk: Chunk, number: int) -> bool:
        # In the order of their numbers: a flight that has been retried for long may be much older than the
        # others.
        for flight in self._flights.values():
            if chunk.disjoint_from_recent and flight.number >= number - self.limits.in_flight:
                return False
            if not flight.chunk.profiles.isdisjoint(chunk.profiles):
                return True
        return False

    def _launch(self, flight: Flight, sender: Any) -> None:
        task = asyncio.create_task(self._fly(flight, sender))
        self._flights[task] = flight
        task.add_done_callback(self._note_end)

    async def _fly(self, flight: Flight, sender: Any) -> None:
        try:
            await self._kind.deliver(flight, sender)
        except RequestError as error:
            if not flight.settled and not error.is_unclear and not error.repeated:
                self._journal.without_effect(flight.number)
            raise
        self._settle(flight)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._journal.flush()
            self._flushed = time.monotonic()

    def _settle(self, flight: Flight, left: Iterable[int] = ()) -> None:
        if flight.refusals:
            changes = list(flight.chunk.changes())
            for position, refusal in flight.refusals:
                if changes[position][:2] not in self.limits.counted:
                    self._journal.reject(self._letter(changes[position], refusal))
        self._journal.landed(
            flight.number,
            [position for position, _ in flight.refusals],
            # What Talon.One answers has a status.
            [position for position, answer in flight.refusals if answer.status is None],
            flight.unclear,
            left,
        )

    def _letter(self, change: Change, error: RejectedError) -> dict[str, Any]:
        return {
            "time": now(),
            "profile_id": change.profile_id,
            **self._kind.letter(change, error),
            "status": error.status,
            "request_uuid": error.request_uuid,
        }

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure:
            # Its flight stays: whoever takes over may have to know what was in it.
            self._failure = self._failure or failure
        else:
            del self._flights[task]
        self._ended.set()

    async def _one_ends(self) -> None:
        """Wait until a flight ends, and raise what it raised."""
        self._raise_failure()
        self._ended.clear()
        await self._ended.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    async def _note_throughput(self, sender: Any) -> None:
        while True:
            self._report.note_throughput(sender.throttled)
            await asyncio.sleep(_SECONDS_BETWEEN_POINTS)

    async def _tell_progress(self, sender: Any) -> None:
        """Log how it goes, and, while nothing moves, why."""
        began = moved = told = time.monotonic()
        before = 0
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_PROGRESS_LINES)
            current = time.monotonic()
            if self.sent > before:
                rate = self.sent / (current - began)
                left = (self._journal.changes - self.sent) / rate
                log.info(
                    "%s of %s sent, %s a second, %s s left",
                    *(f"{each:,.0f}" for each in (self.sent, self._journal.changes, rate, left)),
                )
                before, moved, told = self.sent, current, current
            elif current - told >= _SECONDS_BETWEEN_WAITING_LINES:
                log.warning(
                    "Nothing was acknowledged for %.0f s: %s.",
                    current - moved,
                    sender.waiting or "no answer yet",
                )
                told = current

    async def _read(
        self, reader: CallInReader, chunks: Generator[Chunk, None, None]
    ) -> AsyncGenerator[Chunk, None]:
        """Iterate in the reader's one thread, a list ahead: a SQLite connection must stay in its thread."""
        ahead_by = ceil(self.limits.in_flight * _READ_AHEAD)
        backlog = _Backlog(chunks, ahead_by) if self.limits.reads_ahead else None
        take = backlog.take if backlog else lambda: list(islice(chunks, ahead_by))
        filling = asyncio.create_task(_fill(reader, backlog)) if backlog else None
        ahead = reader(take)
        try:
            while some := await ahead:
                ahead = reader(take)
                for chunk in some:
                    yield chunk
        finally:
            if filling:
                filling.cancel()
            # Queued behind the read that is under way, so that the cursor closes in its own thread. Both may
            # fail, too; the first error is the one to tell.
            for last in (ahead, reader(chunks.close)):
                last.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Backlog:
    """Chunks that were read ahead: some in memory, and the others on disk.

    Args:
        chunks: Where they come from.
        ahead_by: So many are taken at once.
    """

    def __init__(self, chunks: Iterator[Chunk], ahead_by: int) -> None:
        self._chunks = chunks
        self._ahead_by = ahead_by
        self._spool = Spool()
        self._is_over = False
        self._failure: BaseException | None = None

    def fill(self) -> bool:
        """Read some more; return whether there may be more to read now."""
        if self._is_over or len(self._spool) > _MOST_ON_DISK:
            return False
        try:
            some = list(islice(self._chunks, self._ahead_by))
        except BaseException as error:  # noqa: BLE001 - raised when what was read before it has been taken
            some, self._failure = [], error
        self._is_over = not some
        for chunk in some:
            columns = (chunk.ids, chunk.keys, chunk.verbs, chunk.disjoint_from_recent)
            self._spool.write(marshal.dumps(columns, 2))
        return bool(some)

    def take(self) -> list[Chunk]:
        """Take the next chunks; none where all were taken."""
        if not self._spool:
            if self._failure:
                raise self._failure
            return list(islice(self._chunks, self._ahead_by))
        found: list[Chunk] = []
        while self._spool and len(found) < self._ahead_by:
            # This process wrote it, and nobody else can reach it.
            ids, keys, verbs, disjoint = marshal.loads(self._spool.take())  # noqa: S302
            found.append(Chunk(ids, keys, verbs, disjoint_from_recent=disjoint))
        return found


async def _fill(reader: CallInReader, backlog: _Backlog) -> None:
    """Read ahead for as long as there is something to read and room for it."""
    while await reader(backlog.fill):
        """The reader's thread takes what is waited for in between."""


def fail_if_rejected(report: Report, max_rejected: int | None, *, excused: Sequence[str] = ()) -> None:
    """Raise when more records were rejected than are tolerated.

    Args:
        report: The counts.
        max_rejected: How many are tolerated; None for any number.
        excused: Reasons that do not count.

    Raises:
        RejectedRecordsError: They were.
    """
    rejected = sum(count for reason, count in report.rejected.items() if reason not in excused)
    if max_rejected is None or rejected + report.unclear <= max_rejected:
        return
    cure = "Leave such records out of the source, or raise max_rejected."
    if any(UNDEFINED in reason for reason in report.rejected):
        cure = (
            "Define missing attributes in the Campaign Manager,\nor pass skip_unknown_attributes=True.\n"
            + cure
        )
    if report.unclear:
        raise RejectedRecordsError(
            f"{report.unclear:,} of {report.total:,} changes got no clear answer, so rules may have run, "
            f"and {rejected:,} were rejected.\n"
            f"max_rejected is {max_rejected:,}. Everything else was sent.\n"
            "Unclear changes are not sent again: look at the profiles in the dead letters.\n"
            + (f"{cure}\n" if rejected else "")
            + str(report),
            report,
        )
    raise RejectedRecordsError(
        f"{rejected:,} of {report.total:,} records were rejected, and max_rejected is {max_rejected:,}.\n"
        f"Everything else was sent.\n{cure}\n{report}",
        report,
    )


def now() -> str:
    """Return the time as dead letters have it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def watched(
    records: Iterable[Any], suspicious: SuspiciousIds, *, stops: bool = False
) -> Generator[Any, None, None]:
    """Yield records, and look at their IDs.

    Args:
        records: Closed with this generator where it is one.
        suspicious: What was found.
        stops: Whether an ID that looks wrong is an error here and now.
    """
    try:
        for record in records:
            refuse_stopped()
            if isinstance(record, Chunk):
                suspicious.add(record.ids)
            elif isinstance(record, Profile):
                suspicious.add([record.profile_id])
            if stops:
                judge_suspicious(suspicious, "fail")
            yield record
    finally:
        if isinstance(records, Generator):
            records.close()


def judge_suspicious(suspicious: SuspiciousIds, rule: SuspiciousIdsRule) -> None:
    """Say how many IDs look wrong.

    Raises:
        InvalidInputError: They do, and the rule is ``fail``.
    """
    if rule == "ignore" or not (texts := "\n".join(suspicious.texts)):
        return
    if rule == "fail":
        raise InvalidInputError(
            f"{texts}\nFix the query. If these IDs are right, pass suspicious_ids='warn' or 'ignore'."
        )
    log.warning(
        "%s\nThey are sent as they are: profiles that Talon.One does not know by these IDs are new ones.",
        texts,
    )
