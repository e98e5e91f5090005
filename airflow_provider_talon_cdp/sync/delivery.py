"""How membership changes reach Talon.One: a batch in one request, which is halved when it is refused.

Talon.One refuses a batch whole and does not say which record is bad; halving finds the bad ones, so that the rest lands.
"""

from __future__ import annotations

from typing import Protocol

from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError
from airflow_provider_talon_cdp.sync.changes import Batch
from airflow_provider_talon_cdp.sync.push import Deliver, Flight

# When twice this many changes were refused, which is more than is put up with, and none was accepted, the configuration is
# wrong and not the data.
_HOPELESS = 50
_AUDIENCES_NAMED = 10


class Sender(Protocol):
    """Sends one batch, retries included, or raises."""

    async def __call__(self, batch: Batch, /) -> None:
        """Return when Talon.One has acknowledged all of it."""
        ...


def halving(send: Sender, max_rejected: int | None = 0) -> Deliver[Batch]:
    """Make a delivery of a sender.

    Args:
        send: Sends one batch.
        max_rejected: So many refusals are no reason to give up, as they are planned again by each run; None for any number.
    """

    async def deliver(flight: Flight[Batch]) -> None:
        left = [(0, flight.batch)]
        while left:
            start, batch = left.pop()
            try:
                await send(batch)
            except NotFoundError as error:
                error.explain(
                    f"Audiences in the request: {_names(batch)}. Create a missing one with CreateAudienceOperator, or let a mirror do it with audience_name."
                )
                raise
            except RejectedError as error:
                if len(batch) > 1:
                    first, second = batch.halves()
                    left += [(start + len(first), second), (start, first)]
                    continue
                flight.refused(start, error, f"refused by Talon.One ({error.status})")
                if _is_hopeless(flight, error, max_rejected):
                    # Before giving up, try the other end of the batch: perhaps only its beginning is bad.
                    left.reverse()
            else:
                flight.sent(len(batch))

    return deliver


def _is_hopeless(flight: Flight[Batch], error: RejectedError, max_rejected: int | None) -> bool:
    refused = flight.tally.rejected[f"refused by Talon.One ({error.status})"]
    if flight.tally.sent or refused < _HOPELESS:
        return False
    if max_rejected is not None and refused >= max(2 * _HOPELESS, max_rejected + 1):
        error.explain(
            f"The first {refused} records were all refused, so this is no matter of single records."
        )
        raise error
    return refused == _HOPELESS


def _names(batch: Batch) -> str:
    audiences = sorted({str(change.audience_id) for change in batch.changes})
    return ", ".join(audiences[:_AUDIENCES_NAMED]) + (", ..." if len(audiences) > _AUDIENCES_NAMED else "")
