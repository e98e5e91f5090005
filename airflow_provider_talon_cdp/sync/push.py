"""Sends chunks, many in flight, and notes the outcome of every change in a journal.

A profile is never in two requests at once, as Talon.One would refuse one of them.
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
    Sequence,
)
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from itertools import chain, islice
from math import ceil
from typing import TYPE_CHECKING, Any

from airflow_provider_talon_cdp.changes.change import Change, Chunk, Profile
from airflow_provider_talon_cdp.changes.diff import Member
from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import IN_FLIGHT, MAX_CHANGES, SuspiciousIdsRule
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerError,
    LedgerUnavailableError,
    NotFoundError,
    RejectedError,
    RejectedRecordsError,
    RequestError,
    SpoolError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.letters import letter_of
from airflow_provider_talon_cdp.ledger.lock import LEASE
from airflow_provider_talon_cdp.sync.loop import CallInReader, refuse_stopped, run_in_loop_thread
from airflow_provider_talon_cdp.sync.report import Report

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
    from airflow_provider_talon_cdp.ledger.share import Share
    from airflow_provider_talon_cdp.sync.members import Members
    from airflow_provider_talon_cdp.sync.profiles import Profiles

log = logging.getLogger(__name__)

# Handing chunks from the reading thread to the event loop takes time per list, not per chunk. The next list
# is read while the last one is sent. Its length as a share of the requests in flight:
_READ_AHEAD = 1 / 8
_SECONDS_BETWEEN_FLUSHES = 2.0
_SECONDS_BETWEEN_PROGRESS_LINES = 5.0
# Between two points of the throughput curve.
_SECONDS_BETWEEN_POINTS = 1.0
# Between two log lines that say why nothing is acknowledged.
_SECONDS_BETWEEN_WAITING_LINES = 30.0
# Calls in a row without a clear answer after which a push stops, as a person has to check every one of them.
_MOST_UNCLEAR = 10
# Characters of an answer that are kept of a refused change.
_MOST_OF_A_BODY = 1000
UNDEFINED = "is not defined"
"""Part of the reason if a profile was refused for an unknown attribute."""


class Flight:
    """A chunk that is being sent, and the outcome of its changes so far.

    Attributes:
        refusals: The error of each refused change, by position.
        unclear: Positions of changes that run rules and got no clear answer.
        settled: Number of changes with an outcome.
        is_settled: Whether all changes have an outcome, and those that were refused their dead letters.
        had_unclear_attempt: Whether an attempt was unclear, so that a refused change may have been made.
    """

    def __init__(self, number: int, chunk: Chunk, push: Push) -> None:
        self.number = number
        self.chunk = chunk
        self.push = push
        self.refusals: dict[int, RejectedError] = {}
        self.unclear: list[int] = []
        self.settled = 0
        self.is_settled = self.had_unclear_attempt = False
        self._sent: list[int] = []
        # Positions of changes that run rules, in a request without an answer so far.
        self._unanswered: Collection[int] = ()

    @property
    def unsettled(self) -> list[int]:
        """Positions without an outcome, if the chunk runs rules."""
        settled = {*self._sent, *self.unclear, *self.refusals}
        return [position for position in range(len(self.chunk)) if position not in settled]

    def sent(self, part: Chunk, positions: Iterable[int] = ()) -> None:
        """Count an acknowledged part of the chunk; of changes that run rules, keep the positions."""
        self._unanswered = ()
        self._sent += positions
        self.settled += len(part)
        push = self.push
        push.unclear_in_a_row = push.not_found_in_a_row = 0
        push.sent += len(part)
        part.tally(push.report.added, push.report.removed, push.kind.label)

    @contextmanager
    def while_in_flight(self, positions: Collection[int]) -> Iterator[None]:
        """Record durably that a request that runs rules is sent now; the block sends it."""
        self.push.journal.note_sending(self.number, positions)
        self._unanswered = positions
        try:
            yield
        except RequestError as error:
            if not error.is_unclear:
                self._unanswered = ()
                self.push.journal.without_effect(self.number, positions)
            raise

    def count_unclear(self, error: RequestError | None = None) -> None:
        """Count changes that run rules and got no clear answer. Rules do not run for them again.

        Args:
            error: The request's error; None if the push ended before a response came.
        """
        positions, self._unanswered = self._unanswered, ()
        if positions:
            self.settled += len(positions)
            self.unclear += positions
            self.push.count_unclear(list(self.chunk.at(list(positions)).changes()), error)

    def refused(self, position: int, error: RejectedError, reason: str) -> None:
        """Count a refused change.

        Args:
            position: The change's position in the chunk.
            error: The answer.
            reason: The reason to count it by, without IDs and values.
        """
        self.settled += 1
        # There may be thousands of them, so they keep neither frames nor long answers alive.
        error.body, error.__context__ = error.body[:_MOST_OF_A_BODY], None
        self.refusals[position] = error.with_traceback(None)
        self.had_unclear_attempt |= error.repeated
        push, member = self.push, next(self.chunk.at([position]).changes())[:2]
        push.not_found_in_a_row += error.status == HTTPStatus.NOT_FOUND
        push.refused.add(member)
        if member in push.limits.refused_in_run:
            push.refused_again += 1
            return
        if reason not in push.rejected:
            log.warning("A record was refused, and others may follow:\n%s", error)
        push.rejected[reason] += 1
        push.rejected_before += member in push.limits.refused_before


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How a push behaves.

    Args:
        in_flight: Most requests in flight.
        max_rejected: Rejections tolerated: up to so many, a push does not give up early. None for any number.
        suspicious_ids: What to do if profile IDs are valid but look wrong: ``warn``, ``fail`` or ``ignore``.
        refused_before: Members, as profile ID and key, of which Talon.One refused a change in the last run.
        refused_in_run: Members of which a change was refused in this run already. Another refusal counts as
            a duplicate and gets no dead letter.
        read_ahead: Bytes of chunks that are read onto disk as fast as the source yields them, so that its
            cursor does not stay open during the whole push; 0 to read as fast as they are sent.
    """

    in_flight: int = IN_FLIGHT
    max_rejected: int | None = 0
    suspicious_ids: SuspiciousIdsRule = "warn"
    refused_before: frozenset[Member] = frozenset()
    refused_in_run: frozenset[Member] = frozenset()
    read_ahead: int = 0


class Push:
    """The sending of a journal's chunks.

    Args:
        kind: Members or attributes.
        journal: Records the outcome of the chunks: the share of a plan, or the journal of explicit changes.
        report: Updated while this runs: acknowledged, rejected and unsent changes, and requests.
        limits: How to behave.

    Attributes:
        rejected: Number of changes that Talon.One refused in this push, by reason.
        rejected_before: Number of these that it refused in the last run, too.
        refused: Members of refused changes. They fit in memory, as a refusal takes at least one request.
        refused_again: Number of refusals that count as duplicates; see ``Limits``.
        sent: Number of changes that Talon.One acknowledged in this push.
        unclear: Number of changes that run rules and got no clear answer.
        unclear_in_a_row: Requests without a clear answer since the last acknowledgement.
        not_found_in_a_row: Changes refused with a 404 since the last acknowledgement.
    """

    def __init__(
        self, kind: Members | Profiles, journal: Share | OutsideChanges, report: Report, limits: Limits
    ) -> None:
        self.limits = limits
        self.rejected: Counter[str] = Counter()
        self.rejected_before = 0
        self.refused: set[Member] = set()
        self.refused_again = 0
        self.sent = 0
        self.unclear = 0
        self.unclear_in_a_row = 0
        self.not_found_in_a_row = 0
        self.kind = kind
        self.journal = journal
        self.report = report
        self._flights: dict[asyncio.Task[None], Flight] = {}
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._flushed = time.monotonic()
        self._failing_since: float | None = None

    def run(
        self, chunks: Generator[Chunk, None, None], sender: Callable[[], AbstractAsyncContextManager[Any]]
    ) -> None:
        """Send all chunks, on an event loop in another thread.

        Raises:
            RequestError: The push stopped early; what was acknowledged is recorded, and the rest is counted
                as unsent.
            LedgerError: Another run took over.
        """
        try:
            run_in_loop_thread(lambda reader: self._send_all(reader, chunks, sender))
        except NotFoundError as error:
            # If the audience is created again by hand, it has no members.
            self.journal.suspect(error.audiences)
            raise
        finally:
            self.report.rejected.update(self.rejected)
            self.report.duplicate += self.refused_again
            self.report.unclear += self.unclear
            settled = self.sent + self.rejected.total() + self.refused_again + self.unclear
            self.report.unsent += self.journal.changes - settled
            try:
                self.journal.end()
            except LedgerError:
                # Even a push that has sent everything may find only here that another run took over.
                # Unsettled calls that run rules were not sent.
                flights = self._flights.values()
                left = [each.chunk for each in flights if each.settled or not each.chunk.runs_rules]
                with suppress(LedgerError):
                    self.journal.note_in_flight(left)
                raise
            finally:
                self.report.seconds = time.monotonic() - self.report.began
                self.report.dead_letters = self.journal.letters.place

    def count_unclear(self, changes: Collection[Change], error: RequestError | None) -> None:
        """Count changes that run rules and got no clear answer, and write their dead letters.

        Raises:
            UnclearError: Too many requests in a row got no clear answer, so the rest is left for a later run.
        """
        summary = str(error).partition("\n")[0]
        if error and not self.unclear:
            log.warning("%s Others may follow.", summary)
        self.unclear += len(changes)
        for change in changes:
            self._add_letter(change, None, error)
        if error:
            self.unclear_in_a_row += 1
            if self.unclear_in_a_row >= _MOST_UNCLEAR:
                uuid = f"RequestUUID {error.request_uuid}.\n" if error.request_uuid else ""
                raise error.become(
                    UnclearError,
                    f"{_MOST_UNCLEAR} calls in a row that run rules got no clear answer; the last one:\n"
                    f"{summary}\n{uuid}"
                    "Their rules do not run again, and they have dead letters. The next run sends the rest.",
                ) from error

    async def _send_all(
        self,
        reader: CallInReader,
        chunks: Generator[Chunk, None, None],
        open_sender: Callable[[], AbstractAsyncContextManager[Any]],
    ) -> None:
        async with open_sender() as sender:
            sender.before_attempt = self.journal.raise_if_lost
            progress = asyncio.create_task(self._log_progress(sender))
            throughput = asyncio.create_task(self._note_throughput(sender))
            try:
                async with self._ending_flights(), aclosing(self._read(reader, chunks)) as stream:
                    number = 0
                    async for chunk in stream:
                        await self._wait_for_slot(chunk, number)
                        if not chunk.runs_rules:
                            self.journal.note_sending(number)
                        flight = Flight(number, chunk, self)
                        task = asyncio.create_task(self._deliver(flight, sender))
                        self._flights[task] = flight
                        task.add_done_callback(self._note_end)
                        number += 1
                    while self._flights:
                        await self._wait_for_flight()
            finally:
                progress.cancel()
                throughput.cancel()
                self.report.requests += sender.requests
                self.report.retries += sender.retries
                self.report.throttled += sender.throttled
                self.report.note_throughput(0, ends=True)

    @asynccontextmanager
    async def _ending_flights(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for task in self._flights:
                task.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)
            for flight in self._flights.values():
                if flight.is_settled:
                    # Only the record of its outcome failed.
                    continue
                flight.count_unclear()
                # If another run took over, the end of the journal raises the error and leaves a record for
                # that run.
                with suppress(LedgerError):
                    if flight.settled and flight.chunk.runs_rules:
                        # Its acknowledged changes must not count as unclear.
                        self._settle(flight, flight.unsettled)
                    else:
                        # Its refused changes are counted.
                        self._write_letters(flight)

    async def _wait_for_slot(self, chunk: Chunk, number: int) -> None:
        """Wait until another flight may start and no flight has a profile of the chunk."""
        self._raise_failure()
        while len(self._flights) >= self.limits.in_flight or self._shares_a_profile(chunk, number):
            await self._wait_for_flight()

    def _shares_a_profile(self, chunk: Chunk, number: int) -> bool:
        """Return whether a flight has a profile of the chunk."""
        # Flights are in the order of their numbers. One that is retried for long may not count as recent.
        for flight in self._flights.values():
            if chunk.disjoint_from_recent and flight.number > number - self.limits.in_flight:
                return False
            if not flight.chunk.profiles.isdisjoint(chunk.profiles):
                return True
        return False

    async def _deliver(self, flight: Flight, sender: Any) -> None:
        try:
            await self.kind.deliver(flight, sender)
        except RequestError as error:
            if not (flight.settled or flight.had_unclear_attempt or error.is_unclear or error.repeated):
                self.journal.without_effect(flight.number)
            raise
        self._settle(flight)
        if time.monotonic() - self._flushed > _SECONDS_BETWEEN_FLUSHES:
            self._flush()

    def _flush(self) -> None:
        """Make the outcomes durable. An error of the storage may pass before the next flush."""
        try:
            self.journal.flush()
            self._failing_since = None
        except LedgerUnavailableError as error:
            # It may also say that another run took over.
            self.journal.raise_if_lost()
            current = time.monotonic()
            if self._failing_since is None:
                self._failing_since = current
                log.warning("What Talon.One acknowledged cannot be recorded at present.\n%s", error)
            # The journal of explicit changes has no lock to lose.
            if current - self._failing_since >= LEASE:
                raise
        self._flushed = time.monotonic()

    def _write_letters(self, flight: Flight) -> None:
        changes = list(flight.chunk.changes()) if flight.refusals else ()
        for position, refusal in flight.refusals.items():
            if changes[position][:2] not in self.limits.refused_in_run:
                self._add_letter(changes[position], self.kind.reason(refusal), refusal)

    def _settle(self, flight: Flight, left: Iterable[int] = ()) -> None:
        self._write_letters(flight)
        flight.is_settled = True
        self.journal.landed(
            flight.number,
            list(flight.refusals),
            # A refusal without a status is not Talon.One's: the change was not sent.
            [position for position, error in flight.refusals.items() if error.status is None],
            flight.unclear,
            left,
            had_unclear_attempt=flight.had_unclear_attempt,
        )

    def _add_letter(self, change: Change, reason: str | None, error: RequestError | None) -> None:
        of_profile = self.kind.label is not None
        self.journal.letters.add(letter_of(change, time.time(), reason, error, of_profile=of_profile))

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure:
            # Its flight stays in the list, for the record that a run that took over may need.
            self._failure = self._failure or failure
        else:
            del self._flights[task]
        self._ended.set()

    async def _wait_for_flight(self) -> None:
        """Wait until a flight ends, and raise the error of a flight that failed."""
        self._raise_failure()
        self._ended.clear()
        await self._ended.wait()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    async def _note_throughput(self, sender: Any) -> None:
        while True:
            self.report.note_throughput(sender.throttled)
            await asyncio.sleep(_SECONDS_BETWEEN_POINTS)

    async def _log_progress(self, sender: Any) -> None:
        """Log the progress, and why there is none if nothing is acknowledged."""
        began = progressed = logged = time.monotonic()
        before = 0
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_PROGRESS_LINES)
            current = time.monotonic()
            if self.sent > before:
                rate = self.sent / (current - began)
                left = (self.journal.changes - self.sent) / rate
                log.info(
                    "%s of %s sent, %s a second, %s s left",
                    *(f"{number:,.0f}" for number in (self.sent, self.journal.changes, rate, left)),
                )
                before, progressed, logged = self.sent, current, current
            elif current - logged >= _SECONDS_BETWEEN_WAITING_LINES:
                log.warning(
                    "Nothing was acknowledged for %.0f s: %s.",
                    current - progressed,
                    sender.waiting or "no answer yet",
                )
                logged = current

    async def _read(
        self, reader: CallInReader, chunks: Generator[Chunk, None, None]
    ) -> AsyncGenerator[Chunk, None]:
        """Yield chunks, reading the next list in the reader's thread, where a SQLite connection must stay."""
        length = ceil(self.limits.in_flight * _READ_AHEAD)
        backlog = _Backlog(chunks, length, self.limits.read_ahead) if self.limits.read_ahead else None
        take = backlog.take if backlog else lambda: list(islice(chunks, length))
        filling = asyncio.create_task(_fill(reader, backlog)) if backlog else None
        following = reader(take)
        try:
            while current := await following:
                following = reader(take)
                for chunk in current:
                    yield chunk
            if filling:
                # At the end of the source it ends, too. Its error must not pass unseen.
                await filling
        finally:
            if filling:
                filling.cancel()
            # The close is queued behind the last read, so that the cursor closes in its own thread. Both may
            # fail as well. Their errors are dropped, as an earlier one is raised.
            for last in (following, reader(chunks.close)):
                last.add_done_callback(lambda done: done.cancelled() or done.exception())


class _Backlog:
    """Chunks that were read ahead onto disk.

    Args:
        chunks: The source.
        length: Number of chunks that are read or taken at once.
        most: Bytes on disk at which reading pauses.
    """

    def __init__(self, chunks: Iterator[Chunk], length: int, most: int) -> None:
        self._chunks = chunks
        self._length = length
        self._most = most
        self._spool = Spool()
        self._reads_ahead = True
        self._failure: BaseException | None = None

    def fill(self) -> bool:
        """Read the next chunks; return false at the end of the source, or if the disk space is used up."""
        if not self._reads_ahead or len(self._spool) > self._most:
            return False
        try:
            chunks = list(islice(self._chunks, self._length))
        except BaseException as error:  # noqa: BLE001 - raised after the chunks before it were taken
            chunks, self._failure = [], error
        self._reads_ahead = bool(chunks)
        for position, chunk in enumerate(chunks):
            columns = (chunk.ids, chunk.keys, chunk.verbs, chunk.disjoint_from_recent)
            try:
                self._spool.write(marshal.dumps(columns, 2))
            except SpoolError as error:
                log.warning("From now on the source is read only as fast as its changes are sent.\n%s", error)
                # They come after those in the spool.
                self._chunks, self._reads_ahead = chain(chunks[position:], self._chunks), False
                break
        return self._reads_ahead

    def take(self) -> list[Chunk]:
        """Return the next chunks; an empty list at the end."""
        # What a signal raises ends the push at once. An error of the source comes after all that was read.
        if self._failure and (not self._spool or not isinstance(self._failure, Exception)):
            raise self._failure
        if not self._spool:
            return list(islice(self._chunks, self._length))
        chunks: list[Chunk] = []
        while self._spool and len(chunks) < self._length:
            # This process wrote it, and no other process can reach it.
            ids, keys, verbs, disjoint = marshal.loads(self._spool.take())  # noqa: S302
            chunks.append(Chunk(ids, keys, verbs, disjoint_from_recent=disjoint))
        return chunks


async def _fill(reader: CallInReader, backlog: _Backlog) -> None:
    """Read ahead until the end of the source, or until the disk space is used up."""
    while await reader(backlog.fill):
        """In between, the reader's thread makes the other calls, which take chunks."""


def fail_if_rejected(report: Report, max_rejected: int | None, *, excused: Sequence[str] = ()) -> None:
    """Raise an error if more records were rejected than are tolerated.

    Raises:
        RejectedRecordsError: More records were rejected.
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
            "Their rules do not run again: check the profiles in the dead letters.\n"
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
    """Return the time in the format of dead letters."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextmanager
def closing_generator(records: Iterable[Any]) -> Iterator[Iterable[Any]]:
    """Close a generator at the end, and not at a later garbage collection: it may have a cursor or files."""
    try:
        yield records
    finally:
        if isinstance(records, Generator):
            records.close()


def count_suspicious(
    records: Iterable[Any], suspicious: SuspiciousIds, *, fails: bool = False
) -> Generator[Any, None, None]:
    """Yield records, and count their IDs that look wrong.

    Raises:
        InvalidInputError: An ID looks wrong, and ``fails`` is set.
        StoppedError: The task was told to stop.
    """
    of_profiles: list[str] = []
    with closing_generator(records):
        try:
            for record in records:
                refuse_stopped()
                if isinstance(record, Chunk):
                    suspicious.add(record.ids)
                elif isinstance(record, Profile):
                    of_profiles.append(record.profile_id)
                    # Many at once take a fraction of the time.
                    if fails or len(of_profiles) == MAX_CHANGES:
                        suspicious.add(of_profiles)
                        of_profiles = []
                if fails:
                    check_suspicious(suspicious, "fail")
                yield record
        finally:
            suspicious.add(of_profiles)


def check_suspicious(suspicious: SuspiciousIds, rule: SuspiciousIdsRule) -> None:
    """Warn if IDs look wrong, with their numbers, or raise an error, by the rule.

    Raises:
        InvalidInputError: IDs look wrong, and the rule is ``fail``.
    """
    if rule == "ignore" or not (texts := "\n".join(suspicious.texts)):
        return
    if rule == "fail":
        raise InvalidInputError(
            f"{texts}\nFix the query. If these IDs are right, pass suspicious_ids='warn' or 'ignore'."
        )
    log.warning(
        "%s\nThey are sent unchanged. Talon.One creates a new profile for each ID that it does not know.",
        texts,
    )
