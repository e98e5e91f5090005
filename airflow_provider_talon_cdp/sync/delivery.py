"""How membership changes reach Talon.One: a batch in one request, which is halved when it is refused.

Talon.One refuses a batch whole and does not say which record is bad; halving finds the bad ones, so that the rest lands.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from airflow_provider_talon_cdp.exceptions import NotFoundError, RejectedError
from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.push import Deliver, Flight

log = logging.getLogger(__name__)

# When twice this many changes were refused, which is more than is put up with, and none was accepted, the configuration is
# wrong and not the data.
_HOPELESS = 50


class Sender(Protocol):
    """Sends one batch, retries included, or raises."""

    async def __call__(self, batch: Batch, /) -> None:
        """Return when Talon.One has acknowledged all of it."""
        ...


def halving(send: Sender, max_rejected: int | None = 0, *, lets_audiences_go: bool = False) -> Deliver[Batch]:
    """Make a delivery of a sender.

    Args:
        send: Sends one batch.
        max_rejected: So many refusals are no reason to give up, as they are planned again by each run; None for any number.
        lets_audiences_go: Take the removal of members as done where Talon.One has no such audience any more.
    """

    async def deliver(flight: Flight[Batch]) -> None:
        left: list[tuple[Sequence[int], Batch]] = [(range(len(flight.batch)), flight.batch)]
        while left:
            positions, batch = left.pop()
            try:
                await send(batch)
            except NotFoundError as error:
                apart = _by_audience(positions, batch)
                if len(apart) > 1:
                    left += apart.values()
                    continue
                (audience,) = apart
                if lets_audiences_go and await _is_gone(send, batch):
                    log.warning("Talon.One has no audience %r any more, so nobody need be removed.", audience)
                    flight.sent(len(batch))
                    continue
                error.audiences = [audience]
                error.explain(
                    f"Audience in the request: {audience}. If it is missing, create it with CreateAudienceOperator, or let a mirror do it with audience_name."
                )
                raise
            except RejectedError as error:
                if len(batch) > 1:
                    first, second = batch.halves()
                    left += [(positions[len(first) :], second), (positions[: len(first)], first)]
                    continue
                flight.refused(positions[0], error, f"refused by Talon.One ({error.status})")
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


def _by_audience(positions: Sequence[int], batch: Batch) -> dict[str, tuple[Sequence[int], Batch]]:
    found: dict[str, list[tuple[int, Change]]] = {}
    for position, change in zip(positions, batch.changes, strict=True):
        found.setdefault(str(change.audience_id), []).append((position, change))
    return {
        audience: ([position for position, _ in each], Batch([change for _, change in each]))
        for audience, each in found.items()
    }


async def _is_gone(send: Sender, batch: Batch) -> bool:
    """Whether a 404 for a batch of one audience means that members need not be removed from it."""
    if any(change.action == "add" for change in batch.changes):
        return False
    try:
        # The path may be wrong instead. This changes nothing, and is answered with 404 then, too.
        await send(Batch(()))
    except NotFoundError:
        return False
    except RejectedError:
        # Not documented for a request without changes, but the path is right where it is looked at.
        return True
    return True
