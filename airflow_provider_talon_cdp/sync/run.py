"""One sync from its first record to its report."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Protocol, TypeVar

from airflow_provider_talon_cdp.exceptions import RejectedRecordsError
from airflow_provider_talon_cdp.sync.batches import Intake, batches
from airflow_provider_talon_cdp.sync.changes import Record
from airflow_provider_talon_cdp.sync.delivery import Sender, halving
from airflow_provider_talon_cdp.sync.garbage import rare_collections
from airflow_provider_talon_cdp.sync.loop import Reader, run_apart
from airflow_provider_talon_cdp.sync.push import B, Deliver, Flight, push
from airflow_provider_talon_cdp.sync.reasons import UNDEFINED
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_PROGRESS_LINES = 5.0


class Metered(Protocol):
    """A sender that counts what it sends."""

    @property
    def requests(self) -> int:
        """HTTP requests that left."""
        ...

    @property
    def retries(self) -> int:
        """Those of them that repeated a failed one."""
        ...

    @property
    def throttled(self) -> int:
        """Answers 429."""
        ...


class MeteredSender(Sender, Metered, Protocol):
    """A sender of membership changes that counts what it sends."""


S = TypeVar("S", bound=Metered)


@rare_collections()
def run_sync(
    records: Iterable[Record],
    sender: AbstractAsyncContextManager[MeteredSender],
    *,
    in_flight: int = 64,
    max_rejected: int | None = 0,
) -> SyncReport:
    """Send all records, log how it goes, and return the report.

    Args:
        records: A blocking stream of changes and of records that cannot be changes.
        sender: Opened for the run and closed after it.
        in_flight: Requests in flight at the most.
        max_rejected: Rejected records that are put up with; None for any number.

    Raises:
        RejectedRecordsError: Everything good was sent, but more records than ``max_rejected`` were rejected.
        RequestError: The run stopped early; the log says how far it came.
    """
    began = time.monotonic()
    intake, tally = Intake(), Tally()

    def report() -> SyncReport:
        return SyncReport(
            read=intake.read,
            sent=tally.sent,
            duplicate=intake.duplicate,
            rejected=intake.rejected + tally.rejected,
            unsent=tally.unsent + intake.batched - tally.launched + intake.held,
            requests=tally.requests,
            retries=tally.retries,
            throttled=tally.throttled,
            seconds=time.monotonic() - began,
        )

    def progress() -> str:
        return f"{intake.read:,} read, {tally.sent:,} sent, {tally.sent / (time.monotonic() - began):,.0f} a second"

    send_all(
        batches(records, intake, in_flight=in_flight),
        sender,
        partial(halving, max_rejected=max_rejected),
        tally,
        in_flight=in_flight,
        progress=progress,
        report=report,
    )
    log.info("Done: %s", report())
    fail_if_rejected(report(), max_rejected)
    return report()


def send_all(
    stream: Generator[B, None, None],
    opening: AbstractAsyncContextManager[S],
    delivery: Callable[[S], Deliver[B]],
    tally: Tally,
    *,
    in_flight: int,
    progress: Callable[[], str],
    report: Callable[[], SyncReport],
    on_leaving: Callable[[int], None] = lambda _: None,
    on_landed: Callable[[Flight[B]], None] = lambda _: None,
) -> None:
    """Send all batches on an event loop in a thread of its own, where the callbacks run too.

    Args:
        stream: The batches; read in the thread that calls this.
        opening: The sender; opened for the run and closed after it.
        delivery: Makes a delivery of the sender.
        tally: Counts, kept up while this runs.
        in_flight: Batches in flight at the most.
        progress: What a log line every few seconds says.
        report: What the log says when the run stops early.
        on_leaving: Called with the number of a batch before it is sent.
        on_landed: Called when the fate of all changes of a batch is known.
    """
    run_apart(
        lambda reader: _send_all(
            stream,
            opening,
            delivery,
            tally,
            reader=reader,
            in_flight=in_flight,
            on_progress=_every_few_seconds(lambda: log.info("%s", progress())),
            report=report,
            on_leaving=on_leaving,
            on_landed=on_landed,
        )
    )


def fail_if_rejected(report: SyncReport, max_rejected: int | None, *, excused: str | None = None) -> None:
    """Raise when more records were rejected than is put up with.

    Args:
        report: The counts.
        max_rejected: How many are put up with; None for any number.
        excused: A reason that does not count.

    Raises:
        RejectedRecordsError: They were.
    """
    rejected = sum(count for reason, count in report.rejected.items() if reason != excused)
    if max_rejected is None or rejected <= max_rejected:
        return
    cure = "Leave such records out of the source, or raise max_rejected."
    if any(UNDEFINED in reason for reason in report.rejected):
        cure = (
            f"Define missing attributes in the Campaign Manager, or pass skip_unknown_attributes=True. {cure}"
        )
    raise RejectedRecordsError(
        f"{rejected:,} of {report.total:,} records were rejected and max_rejected is {max_rejected:,}; "
        f"everything else was sent. {report}. {cure}",
        report,
    )


async def _send_all(
    stream: Generator[B, None, None],
    opening: AbstractAsyncContextManager[S],
    delivery: Callable[[S], Deliver[B]],
    tally: Tally,
    *,
    reader: Reader,
    in_flight: int,
    on_progress: Callable[[], None],
    report: Callable[[], SyncReport],
    on_leaving: Callable[[int], None],
    on_landed: Callable[[Flight[B]], None],
) -> None:
    async with opening as sender:
        try:
            try:
                await push(
                    stream,
                    delivery(sender),
                    tally,
                    reader=reader,
                    in_flight=in_flight,
                    on_progress=on_progress,
                    on_leaving=on_leaving,
                    on_landed=on_landed,
                )
            finally:
                tally.requests, tally.retries, tally.throttled = (
                    sender.requests,
                    sender.retries,
                    sender.throttled,
                )
        except BaseException:
            log.warning(
                "Stopped early: %s. A retry may send a part again, which changes nothing twice.", report()
            )
            raise


def _every_few_seconds(act: Callable[[], None]) -> Callable[[], None]:
    last = time.monotonic()

    def acted() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_PROGRESS_LINES:
            last = now
            act()

    return acted
