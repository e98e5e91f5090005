"""How far a plan has come: its changes, and what its acknowledgements say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, islice

from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.sync.changes import Change


def acknowledged(changes: Iterable[Change], acks: Acks, size: int) -> Iterator[Change]:
    """Yield the changes that Talon.One has acknowledged.

    Args:
        changes: All changes of the plan.
        acks: What became of its batches.
        size: Changes in a batch.
    """
    for number, batch in _numbered(changes, size):
        refused = acks.landed.get(number)
        if refused is not None:
            yield from [change for at, change in enumerate(batch) if at not in refused] if refused else batch


def unacknowledged(changes: Iterable[Change], acks: Acks, size: int) -> Iterator[Change]:
    """Yield the changes whose fate is not recorded, with what is uncertain about them now."""
    for number, batch in _numbered(changes, size):
        if number not in acks.landed:
            may_have_left = number < acks.may_have_left
            for change in batch:
                yield change._replace(uncertain=change.uncertain or may_have_left)
        else:
            # A refusal says nothing about what an earlier request did.
            yield from (batch[at] for at in acks.landed[number] if batch[at].uncertain)


def refused(changes: Iterable[Change], acks: Acks, size: int) -> Iterator[Change]:
    """Yield the changes that Talon.One refused and that are not sent again: nothing about them is uncertain."""
    for number, batch in _numbered(changes, size):
        yield from (batch[at] for at in acks.landed.get(number, ()) if not batch[at].uncertain)


def _numbered(changes: Iterable[Change], size: int) -> Iterator[tuple[int, list[Change]]]:
    stream = iter(changes)
    for number in count():
        batch = list(islice(stream, size))
        if not batch:
            return
        yield number, batch
