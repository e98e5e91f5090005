"""Sends profiles one after another, as Talon.One takes attributes of one profile in a request."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Protocol

from airflow_provider_talon_cdp.exceptions import FatalError, NotFoundError, RejectedError, RequestError
from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.fingerprints import Names, digest_of, holds, mask_of
from airflow_provider_talon_cdp.sync.profile_diff import nulls
from airflow_provider_talon_cdp.sync.profiles import Profile
from airflow_provider_talon_cdp.sync.push import Deliver, Flight
from airflow_provider_talon_cdp.sync.reasons import reason_of, within
from airflow_provider_talon_cdp.sync.report import Tally
from airflow_provider_talon_cdp.sync.run import Metered

BATCH = 5
"""Profiles of one flight: so many are acknowledged together, and sent again after a kill."""

CHANGED = "changed in the source since it was planned; the next run sends it"
"""Why a profile of a plan is left out by a process that reads the source after the one that planned."""


class ProfileSender(Metered, Protocol):
    """Sends the attributes of one profile, retries included, or raises."""

    async def __call__(self, profile_id: str, attributes: bytes, /) -> None:
        """Return when Talon.One has acknowledged them."""
        ...


@dataclass(frozen=True)
class ProfileBatch:
    """Profiles that one flight sends, and the attributes of each.

    Args:
        changes: The profiles, with their new fingerprints.
        bodies: JSON of the attributes; None where the source has others now than those that were planned.
    """

    changes: Sequence[Change]
    bodies: Sequence[bytes | None]

    # A plan has each profile once.
    alone: ClassVar[bool] = True

    def __len__(self) -> int:
        return len(self.changes)

    @property
    def profiles(self) -> frozenset[str]:
        """IDs of the profiles."""
        return frozenset(change.profile_id for change in self.changes)


def profile_batches(
    changes: Generator[Change, None, None], bodies: Iterable[bytes]
) -> Generator[ProfileBatch, None, None]:
    """Put the changes of a plan and their attributes, which come in the same order, into batches."""
    with closing(changes):
        pairs = zip(changes, bodies, strict=True)
        while batch := list(islice(pairs, BATCH)):
            yield ProfileBatch([change for change, _ in batch], [body for _, body in batch])


def reread(
    batches: Generator[Batch, None, None], profiles: Iterable[Profile], names: Names
) -> Generator[ProfileBatch, None, None]:
    """Find the attributes of a plan, or of a part of it, in the source.

    Args:
        batches: Of the plan, sorted by profile.
        profiles: The source, each profile once, sorted.
        names: Attribute names that the fingerprints refer to.
    """
    rows = iter(profiles)
    row = next(rows, None)

    def body(change: Change) -> bytes | None:
        nonlocal row
        planned = str(change.audience_id)
        if change.action == "remove":
            return nulls(names.of(mask_of(planned)))
        while row is not None and row.profile_id < change.profile_id:
            row = next(rows, None)
        if row is None or row.profile_id != change.profile_id or row.fault:
            return None
        # Whether unknown attributes are ignored makes no difference to what is sent.
        is_same = holds(planned, digest_of(row.profile_id, row.attributes), partial=True)
        return row.attributes if is_same else None

    with closing(batches):
        for batch in batches:
            yield ProfileBatch(batch.changes, [body(change) for change in batch.changes])


def one_by_one(
    send: ProfileSender, give_up_after: int | None, max_rejected: int | None = 0
) -> Deliver[ProfileBatch]:
    """Make a delivery of a sender.

    Args:
        send: Sends one profile.
        give_up_after: When so many profiles were all refused for one reason and none was accepted, the configuration is
            wrong and not the data; None for never.
        max_rejected: So many refusals are no reason to give up, as they are planned again by each run; None for any number.
    """
    limit = None if give_up_after is None or max_rejected is None else max(give_up_after, max_rejected + 1)

    async def deliver(flight: Flight[ProfileBatch]) -> None:
        batch = flight.batch
        for position, (change, body) in enumerate(zip(batch.changes, batch.bodies, strict=True)):
            if body is None:
                # The ledger must not say that Talon.One has what was planned, nor can it learn of anything else now.
                flight.refused(position, RejectedError(CHANGED, method="PUT", path=""), CHANGED)
                continue
            try:
                await send(change.profile_id, body)
            except NotFoundError as error:
                raise _fatal(
                    error, f"{error} So no profile can be sent; check Base URL on the connection."
                ) from error
            except RejectedError as error:
                reason = within(flight.tally.rejected, reason_of(error))
                flight.refused(position, error, reason)
                if limit and _is_hopeless(flight.tally, limit):
                    raise _fatal(
                        error,
                        f"The first {limit:,} profiles were all refused for the same reason: {reason}. So this is no "
                        "matter of single profiles: mend the attributes in the Campaign Manager or in the query, or pass "
                        "skip_unknown_attributes=True. The other profiles were not sent.",
                    ) from error
            else:
                flight.sent(1)

    return deliver


def _is_hopeless(tally: Tally, limit: int) -> bool:
    return not tally.sent and len(tally.rejected) == 1 and tally.rejected.total() >= limit


def _fatal(error: RequestError, message: str) -> FatalError:
    return error.become(FatalError, message)
