"""One sync from its first record to its report."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from airflow_provider_talon_cdp.exceptions import RejectedRecordsError
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.push import Landing, Sender, push
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally

log = logging.getLogger(__name__)
_SECONDS_BETWEEN_PROGRESS_LINES = 5.0


class MeteredSender(Sender, Protocol):
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


def run_sync(
    records: Iterable[Change | Rejection],
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
    report = send_all(records, sender, in_flight=in_flight)
    log.info("Done: %s", report)
    fail_if_rejected(report, max_rejected)
    return report


def send_all(
    records: Iterable[Change | Rejection],
    sender: AbstractAsyncContextManager[MeteredSender],
    *,
    in_flight: int,
    on_leaving: Callable[[int], None] = lambda _: None,
    on_landed: Callable[[Landing], None] = lambda _: None,
    total: int | None = None,
) -> SyncReport:
    """Send all records on an event loop of its own.

    Args:
        records: A blocking stream of changes and of records that cannot be changes.
        sender: Opened for the run and closed after it.
        in_flight: Requests in flight at the most.
        on_leaving: Called with the number of a batch before it is sent.
        on_landed: Called when the fate of all changes of a batch is known.
        total: Records in all, if known; for the progress lines.
    """
    return asyncio.run(_send_all(records, sender, in_flight, on_leaving, on_landed, total))


def fail_if_rejected(report: SyncReport, max_rejected: int | None) -> None:
    """Raise when more records were rejected than is put up with.

    Raises:
        RejectedRecordsError: They were.
    """
    if max_rejected is None or report.rejected_total <= max_rejected:
        return
    raise RejectedRecordsError(
        f"{report.rejected_total:,} of {report.read:,} records were rejected and max_rejected is {max_rejected:,}; "
        f"everything else was sent. {report}. Leave such records out of the source, or raise max_rejected.",
        report,
    )


async def _send_all(
    records: Iterable[Change | Rejection],
    opening: AbstractAsyncContextManager[MeteredSender],
    in_flight: int,
    on_leaving: Callable[[int], None],
    on_landed: Callable[[Landing], None],
    total: int | None,
) -> SyncReport:
    tally = Tally()
    began = time.monotonic()
    async with opening as sender:

        def report() -> SyncReport:
            return SyncReport(
                read=tally.read,
                sent=tally.sent,
                duplicate=tally.duplicate,
                rejected=dict(tally.rejected),
                unsent=tally.unsent,
                requests=sender.requests,
                retries=sender.retries,
                throttled=sender.throttled,
                seconds=time.monotonic() - began,
            )

        progress = _progress_log(tally, began, total)
        try:
            await push(
                records,
                sender,
                tally,
                in_flight=in_flight,
                on_progress=progress,
                on_leaving=on_leaving,
                on_landed=on_landed,
            )
        except BaseException:
            log.warning(
                "Stopped early: %s. A retry may send a part again, which changes nothing twice.", report()
            )
            raise
        return report()


def _progress_log(tally: Tally, began: float, total: int | None) -> Callable[[], None]:
    last = began

    def on_progress() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_PROGRESS_LINES:
            return
        last = now
        rate = tally.sent / (now - began)
        if total is None:
            log.info("%s read, %s sent, %.0f a second", f"{tally.read:,}", f"{tally.sent:,}", rate)
        else:
            left = (total - tally.sent) / rate
            log.info("%s of %s sent, %.0f a second, %.0f s left", f"{tally.sent:,}", f"{total:,}", rate, left)

    return on_progress
