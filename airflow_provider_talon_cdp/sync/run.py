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
from airflow_provider_talon_cdp.sync.push import Sender, push
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
    return asyncio.run(_run(records, sender, in_flight, max_rejected))


async def _run(
    records: Iterable[Change | Rejection],
    opening: AbstractAsyncContextManager[MeteredSender],
    in_flight: int,
    max_rejected: int | None,
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

        try:
            await push(records, sender, tally, in_flight=in_flight, on_progress=_progress_log(tally, began))
        except BaseException:
            log.warning("Stopped early: %s. A retry sends all again, which changes nothing twice.", report())
            raise
        done = report()
    log.info("Done: %s", done)
    if max_rejected is not None and done.rejected_total > max_rejected:
        raise RejectedRecordsError(
            f"{done.rejected_total:,} of {done.read:,} records were rejected and max_rejected is {max_rejected:,}; "
            f"everything else was sent. {done}. Leave such records out of the source, or raise max_rejected.",
            done,
        )
    return done


def _progress_log(tally: Tally, began: float) -> Callable[[], None]:
    last = began

    def on_progress() -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_PROGRESS_LINES:
            last = now
            log.info(
                "%s read, %s sent, %.0f a second",
                f"{tally.read:,}",
                f"{tally.sent:,}",
                tally.sent / (now - began),
            )

    return on_progress
