"""Sends batches with many of them in flight, and accounts for each of their changes.

A profile is never in two requests at once, which Talon.One would refuse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import aclosing, asynccontextmanager
from itertools import islice
from math import ceil
from typing import Generic, NamedTuple, Protocol, TypeAlias, TypeVar

from airflow_provider_talon_cdp.exceptions import RejectedError
from airflow_provider_talon_cdp.sync.loop import Reader
from airflow_provider_talon_cdp.sync.report import Tally

log = logging.getLogger(__name__)

# Crossing from the reading thread to the event loop costs once a list, and not once a batch. A list is read while the one
# before it is sent, so this is the share of those in flight that is read ahead.
_READ_AHEAD = 1 / 8


class Changes(Protocol):
    """What one flight carries."""

    @property
    def profiles(self) -> frozenset[str]:
        """IDs of the profiles that it touches."""
        ...

    @property
    def alone(self) -> bool:
        """Whether none of the last ``in_flight`` batches before it touches one of them, so that nobody need look."""
        ...

    def __len__(self) -> int:
        """How many changes it has."""
        ...


B = TypeVar("B", bound=Changes)


class Refusal(NamedTuple):
    """One change that Talon.One refused, and how it answered.

    Args:
        position: Of the change in its batch.
        error: The answer.
    """

    position: int
    error: RejectedError


class Flight(Generic[B]):
    """A batch under way; its delivery says here what becomes of the changes.

    Attributes:
        number: Batches are numbered from 0 in the order of the stream.
        batch: What it carries.
        refusals: The changes that were refused so far.
    """

    def __init__(self, number: int, batch: B, tally: Tally, on_progress: Callable[[], None]) -> None:
        self.number = number
        self.batch = batch
        self.refusals: list[Refusal] = []
        self.unsettled = len(batch)
        self.tally = tally
        self._on_progress = on_progress

    def sent(self, changes: int) -> None:
        """Note that so many more changes were acknowledged."""
        self.unsettled -= changes
        self.tally.sent += changes
        self._on_progress()

    def refused(self, position: int, error: RejectedError, reason: str) -> None:
        """Note that the change at a position was refused.

        Args:
            position: In the batch.
            error: The answer.
            reason: To count by; it holds no ID and no value.
        """
        if reason not in self.tally.rejected:
            log.warning("A record was refused, and others may follow: %s", error)
        self.unsettled -= 1
        self.tally.rejected[reason] += 1
        self.refusals.append(Refusal(position, error))


Deliver: TypeAlias = Callable[[Flight[B]], Awaitable[None]]
"""Settles all changes of a flight, retries included, or raises what no other flight would survive."""


async def push(
    batches: Generator[B, None, None],
    deliver: Deliver[B],
    tally: Tally,
    *,
    reader: Reader,
    in_flight: int = 64,
    on_progress: Callable[[], None] = lambda: None,
    on_leaving: Callable[[int], None] = lambda _: None,
    on_landed: Callable[[Flight[B]], None] = lambda _: None,
) -> None:
    """Send every batch, and count every change.

    Args:
        batches: What to send.
        deliver: Called with one flight at a time, by several tasks at once.
        tally: Counts, kept up while this runs.
        reader: Where the batches are read, as reading a database blocks.
        in_flight: Batches in flight at the most.
        on_progress: Called after every acknowledgement.
        on_leaving: Called with the number of a batch before it is sent.
        on_landed: Called when the fate of all changes of a batch is known.

    Raises:
        RequestError: The run cannot go on. What was not acknowledged is counted as unsent.
    """
    pusher = _Pusher(deliver, tally, in_flight, on_landed)
    async with pusher.running(), aclosing(_read_by(reader, batches, ceil(in_flight * _READ_AHEAD))) as stream:
        number = 0
        async for batch in stream:
            await pusher.wait_for(batch, number)
            on_leaving(number)
            pusher.launch(Flight(number, batch, tally, on_progress))
            number += 1
        await pusher.wait_for_all()


class _Pusher(Generic[B]):
    def __init__(
        self, deliver: Deliver[B], tally: Tally, in_flight: int, on_landed: Callable[[Flight[B]], None]
    ) -> None:
        self._deliver = deliver
        self._tally = tally
        self._in_flight = in_flight
        self._on_landed = on_landed
        self._flights: dict[asyncio.Task[None], Flight[B]] = {}
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for task in self._flights:
                task.cancel()
            flights = list(self._flights.values())
            await asyncio.gather(*self._flights, return_exceptions=True)
            self._tally.unsent += sum(flight.unsettled for flight in flights)

    async def wait_for(self, batch: B, number: int) -> None:
        """Wait until one more flight may leave, and no profile of it is in another one."""
        self._raise_failure()
        while len(self._flights) >= self._in_flight or self._meets_a_flight(batch, number):
            await self._one_ends()

    def _meets_a_flight(self, batch: B, number: int) -> bool:
        # In the order of their numbers: a flight that has been retried for long may be much older than the others.
        for flight in self._flights.values():
            if batch.alone and flight.number >= number - self._in_flight:
                return False
            if not flight.batch.profiles.isdisjoint(batch.profiles):
                return True
        return False

    async def wait_for_all(self) -> None:
        while self._flights:
            await self._one_ends()

    def launch(self, flight: Flight[B]) -> None:
        self._tally.launched += len(flight.batch)
        task = asyncio.create_task(self._fly(flight))
        self._flights[task] = flight
        task.add_done_callback(self._note_end)

    async def _fly(self, flight: Flight[B]) -> None:
        await self._deliver(flight)
        self._on_landed(flight)

    def _note_end(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        failure = task.exception()
        if failure:
            # Its flight stays, so that what it had not settled is counted.
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


async def _read_by(
    reader: Reader, iterator: Generator[B, None, None], ahead_by: int
) -> AsyncGenerator[B, None]:
    """Iterate in the reader's one thread, a list ahead; a SQLite connection must stay in the thread that made it."""

    def read() -> list[B]:
        return list(islice(iterator, ahead_by))

    ahead = reader(read)
    try:
        while batches := await ahead:
            ahead = reader(read)
            for batch in batches:
                yield batch
    finally:
        # Queued behind the read that is under way, so that the cursor closes in its own thread. Both may fail, too; the first
        # error is the one to tell.
        for last in (ahead, reader(iterator.close)):
            last.add_done_callback(lambda done: done.cancelled() or done.exception())
