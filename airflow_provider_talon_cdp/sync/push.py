"""Sends a stream of changes with many requests in flight, and accounts for each of them.

A profile is never in two requests at once (Talon.One refuses that), and a batch that Talon.One refuses is halved until
the refused changes are alone, so that the rest of it lands.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple, Protocol

from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError
from airflow_provider_talon_cdp.ids import MAX_CHANGES
from airflow_provider_talon_cdp.sync.changes import Batch, Change, Entry, Rejection, chunks
from airflow_provider_talon_cdp.sync.report import Tally

log = logging.getLogger(__name__)

# When twice this many changes were refused and none was accepted, the configuration is wrong and not the data.
_HOPELESS = 50
_AUDIENCES_NAMED = 10


class Sender(Protocol):
    """Sends the entries of one batch, retries included, or raises."""

    async def __call__(self, entries: Sequence[Entry], /) -> None:
        """Return when Talon.One has acknowledged all of them."""
        ...


async def push(
    records: Iterable[Change | Rejection],
    send: Sender,
    tally: Tally,
    *,
    in_flight: int = 64,
    on_progress: Callable[[], None] = lambda: None,
    on_leaving: Callable[[int], None] = lambda _: None,
    on_landed: Callable[[Landing], None] = lambda _: None,
) -> None:
    """Send every change, and count every record.

    Args:
        records: Read in a thread of its own, as reading a database blocks.
        send: Called with one batch at a time, by several tasks at once.
        tally: Counts, kept up while this runs; they balance when it returns or raises.
        in_flight: Batches in flight at the most.
        on_progress: Called after every acknowledgement.
        on_leaving: Called with the number of a batch before it is sent.
        on_landed: Called when the fate of all changes of a batch is known.

    Raises:
        RequestError: The run cannot go on. What was not acknowledged is counted as unsent.
    """
    pusher = _Pusher(send, tally, in_flight, on_progress, on_leaving, on_landed)
    async with pusher.running(), aclosing(_in_thread(chunks(records))) as stream:
        async for chunk in stream:
            for record in chunk:
                await pusher.take(record)
        await pusher.finish()


class Refusal(NamedTuple):
    """One change that Talon.One refused, and how it answered.

    Args:
        position: Of the change in its batch.
        change: The change.
        error: The answer.
    """

    position: int
    change: Change
    error: RejectedError


class Landing(NamedTuple):
    """A batch all of whose changes were acknowledged or refused.

    Args:
        number: Batches are numbered from 0 in the order of the stream.
        refusals: Its refused changes.
    """

    number: int
    refusals: tuple[Refusal, ...]


class _Flight:
    """A batch on its way, and the parts of it that have not landed."""

    def __init__(self, number: int, batch: Batch) -> None:
        self.number = number
        self.refusals: list[Refusal] = []
        self.changes = {change: position for position, change in enumerate(batch.changes)}
        self.profiles = frozenset(entry.profile_id for entry in batch.entries)
        self.left = [batch]

    @property
    def unsent(self) -> int:
        return sum(len(part.changes) for part in self.left)


class _Pusher:
    def __init__(
        self,
        send: Sender,
        tally: Tally,
        in_flight: int,
        on_progress: Callable[[], None],
        on_leaving: Callable[[int], None],
        on_landed: Callable[[Landing], None],
    ) -> None:
        self._send = send
        self._tally = tally
        self._in_flight = in_flight
        self._on_progress = on_progress
        self._on_leaving = on_leaving
        self._on_landed = on_landed
        self._launched = 0
        self._waiting: dict[Change, None] = {}
        self._flights: dict[asyncio.Task[None], _Flight] = {}
        self._flight_of: dict[str, _Flight] = {}
        self._refusals_explained: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for task in self._flights:
                task.cancel()
            await asyncio.gather(*self._flights, return_exceptions=True)
            self._tally.unsent += len(self._waiting) + sum(flight.unsent for flight in self._flights.values())

    async def take(self, record: Change | Rejection) -> None:
        self._tally.read += 1
        if isinstance(record, Rejection):
            self._tally.rejected[record.reason] += 1
            return
        flight = self._flight_of.get(record.profile_id)
        if record in self._waiting or (flight and record in flight.changes):
            self._tally.duplicate += 1
            return
        self._waiting[record] = None
        if len(self._waiting) == MAX_CHANGES:
            await self._launch()

    async def finish(self) -> None:
        if self._waiting:
            await self._launch()
        while self._flights:
            await self._settle()

    async def _launch(self) -> None:
        flight = _Flight(self._launched, Batch.of(self._waiting))
        while len(self._flights) >= self._in_flight or not flight.profiles.isdisjoint(self._flight_of):
            await self._settle()
        self._on_leaving(flight.number)
        self._waiting = {}
        self._launched += 1
        self._flight_of.update(dict.fromkeys(flight.profiles, flight))
        self._flights[asyncio.create_task(self._deliver(flight))] = flight

    async def _settle(self) -> None:
        """Wait until at least one flight has ended, and raise what it raised."""
        done, _ = await asyncio.wait(self._flights, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            for profile_id in self._flights.pop(task).profiles:
                del self._flight_of[profile_id]

    async def _deliver(self, flight: _Flight) -> None:
        while flight.left:
            batch = flight.left[-1]
            try:
                await self._send(batch.entries)
            except NotFoundError as error:
                error.explain(
                    f"Audiences in the request: {_names(batch)}. Create a missing one with CreateAudienceOperator, or let a mirror do it with audience_name."
                )
                raise
            except RejectedError as error:
                if len(batch.changes) > 1:
                    flight.left[-1:] = reversed(batch.halves())
                    continue
                self._refuse(flight, error)
                change = batch.changes[0]
                flight.refusals.append(Refusal(flight.changes[change], change, error))
            else:
                self._tally.sent += len(batch.changes)
                self._on_progress()
            flight.left.pop()
        self._on_landed(Landing(flight.number, tuple(flight.refusals)))

    def _refuse(self, flight: _Flight, error: RejectedError) -> None:
        reason = f"refused by Talon.One ({error.status})"
        if self._tally.sent == 0:
            refused = self._tally.rejected[reason] + 1
            if refused == _HOPELESS:
                # Before giving up, try the other end of the batch: perhaps only its beginning is bad.
                flight.left[:-1] = reversed(flight.left[:-1])
            if refused == 2 * _HOPELESS:
                error.explain(
                    f"The first {refused} records were all refused, so this is no matter of single records."
                )
                raise error
        if reason not in self._refusals_explained:
            self._refusals_explained.add(reason)
            log.warning("A record was refused, and others may follow: %s", error)
        self._tally.rejected[reason] += 1


def _names(batch: Batch) -> str:
    audiences = sorted({str(change.audience_id) for change in batch.changes})
    return ", ".join(audiences[:_AUDIENCES_NAMED]) + (", ..." if len(audiences) > _AUDIENCES_NAMED else "")


async def _in_thread(
    iterator: Generator[list[Change | Rejection], None, None],
) -> AsyncGenerator[list[Change | Rejection], None]:
    """Iterate in one thread of its own, one list ahead; a SQLite connection must stay in the thread that made it."""
    loop = asyncio.get_running_loop()
    # Airflow's log handlers find the task in context variables.
    context = contextvars.copy_context()

    def read() -> list[Change | Rejection]:
        return context.run(lambda: next(iterator, []))

    with ThreadPoolExecutor(1, thread_name_prefix="talon-cdp-source") as thread:
        ahead = loop.run_in_executor(thread, read)
        try:
            while chunk := await ahead:
                ahead = loop.run_in_executor(thread, read)
                yield chunk
        finally:
            # The read that is under way may fail too; the first error is the one to tell.
            ahead.add_done_callback(lambda done: done.cancelled() or done.exception())
            # Queued behind that read, so that the cursor closes in its own thread.
            thread.submit(context.run, iterator.close)
