"""Send a plan, or a share of one, and note in the ledger what became of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError
from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.diff import Member
from airflow_provider_talon_cdp.sync.garbage import rare_collections
from airflow_provider_talon_cdp.sync.kind import Kind, Travelling
from airflow_provider_talon_cdp.sync.ledger import Outcome
from airflow_provider_talon_cdp.sync.plan import now
from airflow_provider_talon_cdp.sync.profile_push import CHANGED
from airflow_provider_talon_cdp.sync.push import Flight
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally
from airflow_provider_talon_cdp.sync.run import Metered, send_all

_SECONDS_BETWEEN_FLUSHES = 2.0
_REFUSED = "refused in an earlier try of a task that pushed"


class Notes(Protocol):
    """Where a push notes what became of its batches: a ledger, or a share of its plan."""

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now, before it does."""
        ...

    def landed(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note that the fate of a batch is known; see ``Ledger``."""
        ...

    def reject(self, record: dict[str, Any]) -> None:
        """Put a record into the dead letters."""
        ...

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences."""
        ...

    def flush(self) -> None:
        """Make all notes durable."""
        ...


class Share(Notes, Protocol):
    """Some parts of a plan."""

    @property
    def changes(self) -> int:
        """How many were left in them when the push began."""
        ...

    @property
    def dead_letters(self) -> str | None:
        """Where the dead letters of this process are, or None when there are none."""
        ...

    def batches(self) -> Generator[Batch, None, None]:
        """Batches that are left, numbered from 0."""
        ...


def push_plan(
    notes: Notes,
    batches: Generator[Travelling, None, None],
    changes: int,
    *,
    kind: Kind,
    sender: Callable[[], AbstractAsyncContextManager[Metered]],
    in_flight: int,
    max_rejected: int | None,
    report: Callable[[Tally], SyncReport],
    needs_letter: Callable[[Member], bool] = lambda _: True,
) -> Tally:
    """Send what is left of a plan.

    Args:
        notes: Where it is noted.
        batches: What is left.
        changes: How many changes these are.
        kind: Members or attributes.
        sender: Opens the sender.
        in_flight: Requests in flight at the most.
        max_rejected: Refused records that are no reason to give up; None for any number.
        report: What to log when the push stops early.
        needs_letter: Asked of each refused member.

    Raises:
        RequestError: The push stopped early; what was acknowledged is noted.
    """
    tally = Tally()
    began = flushed = time.monotonic()

    def on_landed(flight: Flight[Travelling]) -> None:
        nonlocal flushed
        # Few flights have refusals, and only those need their changes one by one.
        refused = flight.batch.changes if flight.refusals else ()
        for position, error in flight.refusals:
            change = refused[position]
            if needs_letter((change.profile_id, str(change.audience_id))):
                notes.reject(_letter(kind, change, error))
        notes.landed(
            flight.number,
            [position for position, _ in flight.refusals],
            # What Talon.One answers has a status.
            [position for position, error in flight.refusals if error.status is None],
        )
        if time.monotonic() - flushed > _SECONDS_BETWEEN_FLUSHES:
            notes.flush()
            flushed = time.monotonic()

    def progress() -> str:
        rate = tally.sent / (time.monotonic() - began)
        left = f", {(changes - tally.sent) / rate:,.0f} s left" if rate else ""
        return f"{tally.sent:,} of {changes:,} sent, {rate:,.0f} a second{left}"

    try:
        send_all(
            batches,
            sender(),
            partial(kind.deliver, max_rejected=max_rejected),
            tally,
            in_flight=in_flight,
            progress=progress,
            report=lambda: report(tally),
            on_leaving=notes.leaving,
            on_landed=on_landed,
        )
    except NotFoundError as error:
        # Whoever deleted an audience may make it again by hand, without its members.
        notes.suspect(error.audiences)
        raise
    finally:
        notes.flush()
    return tally


@rare_collections()
def push_share(
    share: Share,
    batches: Generator[Travelling, None, None],
    *,
    kind: Kind,
    sender: Callable[[], AbstractAsyncContextManager[Metered]],
    in_flight: int,
    max_rejected: int | None = 0,
) -> SyncReport:
    """Send what is left of some parts of a plan.

    Args:
        share: These parts.
        batches: Theirs, as they travel.
        kind: Members or attributes.
        sender: Opens the sender.
        in_flight: Requests in flight at the most.
        max_rejected: Refused records that are no reason to give up; None for any number.

    Returns:
        The counts, where ``resumed`` is what was left.

    Raises:
        RequestError: The push stopped early; what was acknowledged is noted.
        LedgerError: Another run took over.
    """
    began = time.monotonic()

    def report(tally: Tally) -> SyncReport:
        return SyncReport(
            read=0,
            resumed=share.changes,
            sent=tally.sent,
            duplicate=0,
            rejected=tally.rejected,
            unsent=tally.unsent + share.changes - tally.launched,
            requests=tally.requests,
            retries=tally.retries,
            throttled=tally.throttled,
            seconds=time.monotonic() - began,
            dead_letters=share.dead_letters,
        )

    tally = push_plan(
        share,
        batches,
        share.changes,
        kind=kind,
        sender=sender,
        in_flight=in_flight,
        max_rejected=max_rejected,
        report=report,
    )
    return report(tally)


def whole(
    planned: SyncReport, outcome: Outcome, pushed: Iterable[Mapping[str, Any]], seconds: float
) -> SyncReport:
    """Join the report of a plan with what became of it in several processes.

    Args:
        planned: Of ``Mirror.hand_over``.
        outcome: What the ledger says.
        pushed: Summaries of ``push_share``, of each task's last try.
        seconds: From the plan to now.
    """
    pushed = list(pushed)
    refused: Counter[str] = sum((Counter(each["rejected"]) for each in pushed), Counter())
    # Of these the ledger knows those of all tries.
    refused[CHANGED] = outcome.skipped
    return replace(
        planned,
        sent=outcome.acknowledged,
        rejected=Counter(planned.rejected) + refused + Counter({_REFUSED: outcome.refused - refused.total()}),
        unsent=outcome.changes - outcome.acknowledged - outcome.refused,
        requests=sum(each["requests"] for each in pushed),
        retries=sum(each["retries"] for each in pushed),
        throttled=sum(each["throttled"] for each in pushed),
        dead_letters=outcome.dead_letters,
        seconds=seconds,
    )


def _letter(kind: Kind, change: Change, error: RejectedError) -> dict[str, Any]:
    return {
        "time": now(),
        "profile_id": change.profile_id,
        **kind.letter(change, error),
        "status": error.status,
        "request_uuid": error.request_uuid,
    }
